"""An S3 server on the loopback, with one bucket."""

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUCKET = "circuitloom"


@dataclass(frozen=True)
class Server:
    """A running server."""

    address: str
    bucket: Any
    """boto3's Bucket."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with credentials for Snakemake's storage plugin."""
        return os.environ | {
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "anyone",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "anything",
        }

    @property
    def options(self) -> list[str]:
        """Options of Snakemake that store results in the bucket."""
        return [
            "--default-storage-provider", "s3", "--default-storage-prefix", f"s3://{BUCKET}",
            "--storage-s3-endpoint-url", self.address,
        ]  # fmt: skip

    def keys(self) -> set[str]:
        return {item.key for item in self.bucket.objects.all()}

    def fetch(self, folder: Path) -> None:
        """Download everything in the bucket into `folder`."""
        for key in self.keys():
            file = folder / key
            file.parent.mkdir(parents=True, exist_ok=True)
            self.bucket.download_file(key, str(file))


@contextmanager
def s3_server() -> Iterator[Server]:
    """moto's server, which keeps everything in memory, until the context ends."""
    import boto3
    from moto.server import ThreadedMotoServer

    # no line per request
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        # the servers of one process share their memory: remove the objects of earlier ones
        urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST")).close()
        keys = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anything"}
        s3 = boto3.resource("s3", endpoint_url=address, region_name="us-east-1", **keys)
        yield Server(address, s3.create_bucket(Bucket=BUCKET))
    finally:
        server.stop()
