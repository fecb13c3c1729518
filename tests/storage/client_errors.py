"""Errors as the clients of stores raise them."""

from botocore.exceptions import ClientError


def s3_error(code: str, http: int, message: str = "said so") -> ClientError:
    error = {"Code": code, "Message": message}
    answer = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": http}}
    return ClientError(answer, "GetObject")
