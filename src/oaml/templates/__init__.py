"""What is kept of a face: in a byte a number, in files, of whole folders."""
