"""What is kept of a face: quantised to int8, in files, of whole folders of images."""
