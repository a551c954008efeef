"""Makes a bucket, or fetches all its objects into a folder.

    s3.py ENDPOINT create BUCKET
    s3.py ENDPOINT fetch BUCKET FOLDER
"""

import pathlib
import sys

import boto3

endpoint, action, bucket = sys.argv[1:4]
s3 = boto3.client(
    "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
)
if action == "create":
    s3.create_bucket(Bucket=bucket)
else:
    folder = pathlib.Path(sys.argv[4])
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            file = folder / entry["Key"]
            file.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, entry["Key"], str(file))
