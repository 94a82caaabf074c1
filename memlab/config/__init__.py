"""How a command line becomes a typed configuration, and how the processes of a command are started."""
