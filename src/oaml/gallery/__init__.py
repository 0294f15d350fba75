"""People enrolled with their faces, and who a face is."""

from oaml.gallery.gallery import Gallery as Gallery
