"""What a file says of its own origin, found by the container's structure and never by searching
bytes. Signals beside a score.

Anybody can write or remove such statements; only a C2PA manifest can be checked, and only a trust
list says whose signature counts. Nothing is fetched, no name of a person or place is read, no pixel
is decoded. As JSON (`Provenance.row`), absent where unsaid:

    camera               {make, model, taken}                      EXIF
    software             "Adobe Photoshop 25.0"                    EXIF, PNG text, XMP, IPTC-IIM: the first of them that says one
    generator            {tool, version, prompt, negative_prompt, steps, sampler, seed, model, model_hash, models, nodes}
    digital_source_type  ["trainedAlgorithmicMedia"]               XMP, in IPTC's codes
    c2pa                 {state, claim_generator, signer, ai_generated, source_types, remote, sidecar, problems}
    watermark            {of, bits, length, chance}                a mark in the pixels
    unread               ["text “workflow”: over max_text_bytes (16777216)"]     what was left out for a limit
    ai_declared          true where generator parameters, digital_source_type, or a C2PA manifest that is not invalid say so
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.images.provenance.reader import (
        ProvenanceConfig,
        ProvenancePolicy,
        ProvenanceReader,
        has_manifest,
    )
    from ray_app.images.provenance.sidecar import FileWithSidecar, attach_sidecar, get_sidecar
    from ray_app.images.provenance.statement import (
        Camera,
        ContentCredentials,
        Generator,
        Provenance,
        Watermark,
    )
else:
    __getattr__ = on_first_use(__name__)
