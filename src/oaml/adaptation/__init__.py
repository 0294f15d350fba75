"""`oaml adapt`: a checkpoint made occlusion-aware on cached features, its thresholds fitted on people held out."""
