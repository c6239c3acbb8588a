"""The train stage: recipe and data in, adapter directory and `train_manifest.json` out."""
