"""The command line ``s3dlio``: parses arguments, calls the store, prints; decides nothing about checkpoints."""
