# SPDX-License-Identifier: Apache-2.0
"""Where the platform answers otherwise than Triton, on purpose, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One decision.

    Attributes:
        reason: Why ours is as it is.
        requests: Pattern of the names of the requests it shows in.
        places: Pattern of the places in their answers.
        pair: Ours and theirs, where the decision is about just these; None: whatever they are.
    """

    reason: str
    requests: str
    places: str
    pair: tuple[Any, Any] | None = None

    def explains(self, request: str, place: str, ours: Any, theirs: Any) -> bool:
        """Whether this is why they differ."""
        return bool(
            re.search(self.requests, request)
            and re.fullmatch(self.places, place)
            and self.pair in (None, (ours, theirs))
        )


DELIBERATE = (
    Difference(
        "A client's mistake is 400; Triton answers 500 for what its JSON reader refuses.", ".", "status", (400, 500)
    ),
    Difference(
        "Health, readiness and the paths that Triton does not know answer as KServe and the Open Inference Protocol "
        "have them: a JSON body, `HEAD`, a trailing slash, percent-encoding, `/v2/models`, `/`.",
        "^health|^metadata: (root|list|percent)|slash|^repository: unload, then load",
        r"content-type|(8: )?(content-type|body\.(live|name|ready))|status",
        None,
    ),
    Difference(
        "The server has its own name and version and lists what it has; a model's platform is its framework.",
        "^metadata|^grpc: ModelMetadata",
        r"body\.(name|version|extensions|platform)|answer\[0\]\.platform",
    ),
    Difference(
        "A known model that is not ready is 503 with the reason and `Retry-After`, whether it failed, is loading or is "
        "unloaded; an unknown one is 404 everywhere.",
        "failed model|unload|cannot be loaded|unknown model|unknown version ready",
        r"(\d: )?(status|code)",
    ),
    Difference(
        "The configuration tells how the platform runs a model, which is not how Triton does.",
        "^config|^grpc: ModelConfig",
        r"(body|answer\[0\]\.config)\.(backend|optimization\..*|dynamic_batching\..*|default_model_filename|"
        r"parameters.*|output\[\d\]\.label_filename|input_pinned_memory.*)",
    ),
    Difference(
        "An answer always has an id: the client's, or a new UUID.",
        "no id|empty id|^binary: raw|without an id",
        r"body\.id|answer\[0\]\.id",
    ),
    Difference(
        "Requested outputs come in the order the client asked for; Triton keeps the model's.",
        "outputs in another order|parameters that the model sees",
        r"body\.outputs\[\d\]\..*",
    ),
    Difference("An output that is asked for twice is a mistake.", "output twice", "status", (400, 200)),
    Difference(
        "Any parameter reaches the model; Triton keeps names that begin with `triton_` to itself.",
        "reserved parameter",
        "status",
        (200, 400),
    ),
    Difference("A content type that is neither JSON nor binary is 415.", "text/plain", "status", (415, 200)),
    Difference(
        "A model answers every output that its signature promises, else it has failed; Triton passes on what it gives.",
        "left out by the model|model answers|^generate: FP16",
        "status",
    ),
    Difference(
        "A model that fails is 500, never the client's mistake; Triton's generate answers 400.",
        "model raises|answers an error|decoupled, (error|raises)|error first|is no stream and raises",
        "status",
        (500, 400),
    ),
    Difference(
        "Lower-case datatypes, no rows, more rows than one call of the model takes, `null` for NaN, and data beside "
        "`binary_data_size` are understood.",
        "lower case|zero rows|more rows than|null in FP32|size and data",
        "status",
    ),
    Difference(
        "A number that its datatype cannot hold is refused; Triton wraps it or makes it infinite.",
        "too large|256 for UINT8",
        "status",
        (400, 200),
    ),
    Difference(
        "BYTES that are no text have no JSON form and are refused with the advice to ask for binary; Triton writes "
        "invalid JSON.",
        "BYTES that are no text",
        "status",
        (400, 200),
    ),
    Difference("A binary answer without a byte is still a binary answer.", "nothing binary", "content-type|binary"),
    Difference(
        "gzip, deflate with and without its header, and replies of 1 KiB and more are compressed for `infer` and "
        "`generate`; what is neither is 415.",
        "^compression",
        "status|content-encoding",
    ),
    Difference("In a classification what is no number comes last.", "classification: NaN", r"body\.outputs\[0\]\.data"),
    Difference("JSON's last member of a name wins, as nearly everywhere.", "generate: key twice", "status", (200, 400)),
    Difference(
        "generate is one row; Triton makes rows of whatever is left over.", "generate: two rows", "status", (400, 200)
    ),
    Difference("generate takes nested lists.", r"nested for \[2,2\]", "status", (200, 400)),
    Difference(
        "A stream where one answer was asked for is 400; Triton answers 200 with an error in it.",
        "generate: decoupled, (two|no) answers?",
        "status",
        (400, 200),
    ),
    Difference(
        "An error ends a stream: before the first answer it is a plain reply with its status, afterwards the last "
        "event. Triton goes on with what the model sends next.",
        "^generate_stream",
        r"event\[\d\]\..*|body\.error",
    ),
    Difference(
        "A configuration or files in a load request are refused: register a model instead.",
        "load with a configuration",
        "status",
        (501, 200),
    ),
    Difference("The index gives the reason wherever there is one.", "unload, then load", r"5: body\[\d\]\.reason"),
    Difference(
        "There is no shared memory, and trace and log settings are the platform's.",
        "^other|trace settings|shared memory",
        "status|code",
    ),
    Difference(
        "The statistics of batches count calls that were answered.", "a model that raises", "batch of 1", (1, 2)
    ),
    Difference(
        "Typed tensors are answered typed, raw ones raw; Triton always answers raw.",
        "grpc: typed",
        r"answer\[0\]\.(raw_output_contents|outputs\[\d\]\.contents\..*)",
    ),
    Difference(
        "An error in a stream names its model and says that it is the last answer to its request.",
        "^stream",
        r"answer\[\d\]\.infer_response\.(model_name|parameters\..*)",
    ),
    Difference(
        "The empty final response has the model's version, as all others.",
        "final response",
        r"answer\[\d\]\.infer_response\.model_version",
    ),
)


def find_reason(request: str, place: str, ours: Any, theirs: Any) -> Difference | None:
    """The decision that explains a difference; None where nobody has made it."""
    return next((one for one in DELIBERATE if one.explains(request, place, ours, theirs)), None)
