-- POSTGRES_DB is Optuna's; this one is MLflow's.
CREATE DATABASE mlflow OWNER memlab;
