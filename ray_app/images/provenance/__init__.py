"""Read what a file states about its own origin (`ProvenanceReader`).

The statements are shown with a score and never change it. They are found by the structure of the
file's container, never by a search for bytes. Anyone can write or remove such statements. Only a
C2PA manifest can be verified, and only a trust list shows whose signature is trusted. Nothing is
fetched, no name of a person or place is read, and no pixel is decoded.

The JSON (`Provenance.row`) has these keys. Keys for which the file has no statement are left out.
The classes of `provenance.statement`, such as `ContentCredentials` for `c2pa`, describe the fields.

    camera               {make, model, taken}                      EXIF
    software             "Adobe Photoshop 25.0"                    EXIF, PNG text, XMP, IPTC-IIM: the first that states it
    generator            {tool, version, prompt, negative_prompt, steps, sampler, seed, model, model_hash, models, nodes}
    digital_source_type  ["trainedAlgorithmicMedia"]               XMP, in IPTC's codes
    aigc_label           {level, producer, propagator}             XMP, PNG text, EXIF: the label of GB 45438-2025
    c2pa                 {state, claim_generator, signer, ai_generated, source_types, remote, sidecar, problems}
    watermark            {of, bits, length, chance}                a mark in the pixels
    unread               ["text “workflow”: over max_text_bytes (16777216)"]     what was left out because of a limit
    ai_declared          true if generator parameters, digital_source_type, aigc_label, or a C2PA manifest that is not invalid declare it
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
        AigcLabel,
        Camera,
        ContentCredentials,
        Generator,
        Provenance,
        Watermark,
    )
else:
    __getattr__ = on_first_use(__name__)
