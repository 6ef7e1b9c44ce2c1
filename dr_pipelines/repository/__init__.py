"""The backup repository: objects in a folder or a bucket, and what is in them (docs/repository-format.md)."""
