"""Inner loops, in torch and, where they exist, in C++ and Triton; threads that share work."""
