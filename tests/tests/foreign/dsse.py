"""Envelopes and canonical JSON of securesystemslib, for a comparison.

Standard input is a JSON object: `keys` (PEM of private keys), `payloads` (Base64) and `type`, `envelopes` (with the
`keyid` and the index of the `key` that signed each) and `values` to write canonically. Standard output is a JSON object
with `ids` of the keys, `envelopes` (for each payload, signed by every key), `verified` (for each envelope of the input)
and `canonical` texts.
"""

import base64
import json
import sys

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, SSlibKey


def is_verified(item, signers):
    key = signers[item["key"]].public_key
    named = SSlibKey(item["keyid"], key.keytype, key.scheme, key.keyval)
    try:
        Envelope.from_dict(item["envelope"]).verify([named], 1)
    except VerificationError:
        return False
    return True


def main():
    task = json.load(sys.stdin)
    signers = [CryptoSigner(load_pem_private_key(pem.encode(), None)) for pem in task["keys"]]
    envelopes = []
    for payload in task["payloads"]:
        envelope = Envelope(base64.b64decode(payload), task["type"], {})
        for signer in signers:
            envelope.sign(signer)
        envelopes.append(envelope.to_dict())
    json.dump(
        {
            "ids": [signer.public_key.keyid for signer in signers],
            "envelopes": envelopes,
            "verified": [is_verified(item, signers) for item in task["envelopes"]],
            "canonical": [encode_canonical(value) for value in task["values"]],
        },
        sys.stdout,
    )


main()
