"""Set-up: a virtual environment, the llama.cpp wheel for this CPU, and Conclave itself. Standard library only."""
