"""What this adapter needs of Keras, and the errors if it is missing."""

import os


def require_keras_3_on_tensorflow() -> None:
    """Raise ImportError unless ``keras`` is Keras 3 and runs on TensorFlow.

    Keras 2 (the tf-keras package, TF_USE_LEGACY_KERAS) is refused. Horovod's own Keras layer works
    there, it gets no new features, and its optimizers have another interface than those of Keras 3.
    """
    if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        raise ImportError(
            "slowmo_hvd.tensorflow needs Keras 3, and TF_USE_LEGACY_KERAS asks for Keras 2: unset "
            "it, or stay with horovod.tensorflow.keras, which works on Keras 2"
        )
    # Before importing Keras, which fails if its backend is not installed.
    _check_backend(os.environ.get("KERAS_BACKEND", "tensorflow"))
    import keras

    if int(keras.__version__.split(".")[0]) < 3:
        raise ImportError(
            f"slowmo_hvd.tensorflow needs Keras 3, and keras {keras.__version__} is installed: "
            "pip install --upgrade keras, or stay with horovod.tensorflow.keras, which works on it"
        )
    _check_backend(keras.config.backend())  # its configuration file can choose one too


def _check_backend(backend: str) -> None:
    if backend == "torch":
        raise ImportError(
            "slowmo_hvd.tensorflow needs Keras on TensorFlow, and its backend is 'torch': set "
            "KERAS_BACKEND=tensorflow, or train the model, a torch.nn.Module then, in a loop with "
            "a torch optimizer and slowmo_hvd.torch"
        )
    if backend != "tensorflow":
        raise ImportError(
            f"slowmo_hvd.tensorflow needs Keras on TensorFlow, and its backend is {backend!r}, "
            "whose tensors Horovod cannot send: set KERAS_BACKEND=tensorflow"
        )
