"""Turn detector scores into verdicts: ensemble cards, rules, thresholds, and cascades.

The package also describes the population that a calibration holds for (`Population`) and the
finding on a file (`find`). Start at `load_ensemble_card` and `decide`.
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
        check_rate,
        choose_operating_point,
        decision_facts,
        ensemble_of,
        list_rates,
        load_ensemble_card,
    )
    from ray_app.ensembles.decision import (
        Decisions,
        calibrate,
        combine,
        decide,
        drawn_by_audit,
        is_calibrated,
        logit,
        second_looks,
        sigmoid,
    )
    from ray_app.ensembles.finding import (
        Finding,
        Ground,
        describe_error_rates,
        error_rates,
        find,
    )
    from ray_app.ensembles.population import (
        LabelledPart,
        Population,
        PopulationTally,
        population_of,
        properties_of,
    )
else:
    __getattr__ = on_first_use(__name__)
