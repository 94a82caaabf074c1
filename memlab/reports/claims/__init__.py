"""Published claims, put to the test: the files of `configs/claim`, evidence, verdicts, pages."""
