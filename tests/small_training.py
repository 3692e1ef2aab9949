"""Small trainings of found CNN cells, for tests."""

from dartsfast.train import TrainCNNConfig


def config(data, **options):
    """Return options of a training of two epochs, in batches of four."""
    sizes = {"init_channels": 2, "layers": 3, "batch_size": 4, "epochs": 2, "learning_rate": 0.05}
    return TrainCNNConfig(data=data, report_freq=1, **{**sizes, **options})


def in_float64(training):
    """Return ``training`` with a network that computes in float64."""
    training.model.double()
    training.model.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    return training
