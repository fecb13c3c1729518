"""Turn the scores of detectors into a verdict per image: real, fake, or abstain.

An ensemble card is a YAML file that names detectors and states how their scores become a verdict.
Start at `load_ensemble_card`, which reads a card, and `decide`, which applies it.

`Population` describes the images that a calibration is valid for. `find_origin` combines the
verdict with what a file states about its own origin, such as Content Credentials.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.ensembles.card import (
        CalibrationSettings,
        CascadeStage,
        EnsembleCard,
        EnsembleMember,
        EnsembleProfile,
        Guarantee,
        OperatingPoint,
        Thresholds,
        build_ensemble,
        check_rate,
        choose_operating_point,
        get_decision_settings,
        list_rates,
        load_ensemble_card,
    )
    from ray_app.ensembles.decision import (
        Decisions,
        calibrate,
        combine,
        decide,
        is_calibrated,
        list_second_stage_reasons,
        logit,
        select_audited,
        sigmoid,
    )
    from ray_app.ensembles.finding import (
        Finding,
        Ground,
        describe_error_rates,
        find_origin,
        format_error_rates,
    )
    from ray_app.ensembles.population import (
        LabelledPart,
        Population,
        PopulationTally,
        compute_properties,
        measure_population,
    )
else:
    __getattr__ = on_first_use(__name__)
