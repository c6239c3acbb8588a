"""vLLM as a child process, and a client of its administrative paths."""
