"""``s3dlio demo``: a small training run that is killed in the middle of a save and resumes to the same bits."""
