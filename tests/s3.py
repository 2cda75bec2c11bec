"""An S3 service on the loopback interface, and one that is away."""

from contextlib import closing, contextmanager
from urllib.request import Request, urlopen

import boto3
from moto.server import ThreadedMotoServer

from tests.ports import free_port

KEYS = {"aws_access_key_id": "a-key", "aws_secret_access_key": "a-secret"}


class S3:
    """moto's server with a bucket; a context manager that may be away for a while."""

    bucket = "plant"

    def __init__(self):
        self.port = free_port()
        self._server = None

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.start()
        self.client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", **KEYS
        )
        self.client.create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_):
        if self._server is not None:
            self.stop()
        self.client.close()

    def start(self):
        """Answer; what was there is there still."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self):
        """Nobody listens any more."""
        self._server.stop()
        self._server = None

    def key_without_rights(self, user="line"):
        """The key of a user who may do nothing."""
        users = boto3.client("iam", endpoint_url=self.endpoint, region_name="us-east-1", **KEYS)
        with closing(users):
            users.create_user(UserName=user)
            key = users.create_access_key(UserName=user)["AccessKey"]
        return {"access_key": key["AccessKeyId"], "secret_key": key["SecretAccessKey"]}

    @contextmanager
    def asking_for_rights(self):
        """From now on nobody may do anything without rights; then again everybody everything."""
        self._ask_from(0)
        try:
            yield
        finally:
            self._ask_from("inf")

    def _ask_from(self, action):
        place = f"{self.endpoint}/moto-api/reset-auth"
        with urlopen(
            Request(place, str(action).encode(), {"content-type": "text/plain"}), timeout=30
        ):
            pass

    def names(self, prefix=""):
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [each["Key"] for each in found.get("Contents", ())]

    def get(self, name):
        return self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read()

    def fetch(self, folder, prefix="parts/"):
        """Copy objects into a folder, under their names."""
        for name in self.names(prefix):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self.get(name))
