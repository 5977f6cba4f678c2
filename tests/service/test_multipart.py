import os

import blake3
import pytest

MIB = 1024**2
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="dataset"; filename="d"\r\n\r\n',
    b"\r\n--b--\r\n",
)


@pytest.mark.parametrize("edge", [-3, -1, 0, 1, 5])
def test_a_form_is_read_right_wherever_its_boundary_falls(http, edge):
    """The boundary is split between two reads, and look-alikes of it stand in the data."""
    decoys = b"\r\n--b\r-\r\n--" * 1000
    data = decoys + os.urandom(MIB - len(FORM[0]) - len(decoys) + edge)
    body = FORM[0] + data + FORM[1]

    answer = http.post(
        "/datasets", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )

    assert answer.json()["id"] == "ds_" + blake3.blake3(data).hexdigest()


def test_more_parts_than_a_form_needs_are_refused(client):
    part = b'--b\r\nContent-Disposition: form-data; name="spec"\r\n\r\n\r\n'

    answer = client.post(
        "/datasets", data=part * 20 + b"--b--", content_type="multipart/form-data; boundary=b"
    )

    assert (answer.status_code, answer.json["code"]) == (400, "malformed_multipart")
