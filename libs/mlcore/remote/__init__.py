"""What is elsewhere: files in S3 buckets, uploads beside the training, published models of the hub.

May import base, config and `training.checkpoint`.
"""
