"""Self-supervised objectives that train an encoder on windows of trajectories, one file each."""

from encoders.pretraining.base import Objective
from encoders.pretraining.flow_bc import FlowBC
from encoders.pretraining.inverse_dynamics import InverseDynamics
from encoders.pretraining.reconstruction import Reconstruction
from encoders.pretraining.self_prediction import SelfPrediction
from encoders.pretraining.temporal_contrast import TemporalContrast

OBJECTIVES: dict[str, type[Objective]] = {
    'inverse_dynamics': InverseDynamics,
    'temporal_contrast': TemporalContrast,
    'self_prediction': SelfPrediction,
    'flow_bc': FlowBC,
    'reconstruction': Reconstruction,
}
"""By the name that --objective takes."""
