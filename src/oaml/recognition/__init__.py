"""Two faces, or a face and its track through a video, to an answer with its reasons."""
