"""Errors that one package raises and another completes or handles."""


class NonFinitePredictionError(ValueError):
    """A layer of the model predicts NaN or infinity, so nothing can be matched to it.

    Attributes:
        layer: which predictions, in words ("decoder layer 3 of 6", "encoder proposals").
        batch_index: position of the first affected image in the batch of this process.

    Whoever knows the iteration and the image ids adds them to the message.
    """

    def __init__(self, layer: str, batch_index: int):
        self.layer = layer
        self.batch_index = batch_index
        super().__init__(layer, batch_index)

    def __str__(self) -> str:
        return (
            f"{self.layer}: the predictions for image {self.batch_index} of the batch contain NaN "
            "or infinity. Usual causes: the learning rate is too high (lower `optimizer.lr`), "
            "gradients are not clipped (`train.clip_grad.enabled=True`), or float16 overflows "
            "(`train.amp.enabled=False`)."
        )
