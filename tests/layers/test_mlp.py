import pytest
import torch
from torch import nn

from aligndetr.layers import FFN, MLP
from tests.builders import golden, tensor


def weights_of(name: str) -> dict[str, torch.Tensor]:
    prefix = f"{name}/weights/"
    numbers = golden("layers")
    return {key[len(prefix) :]: tensor(numbers[key]) for key in numbers if key.startswith(prefix)}


@pytest.mark.parametrize(
    ("name", "module"), [("mlp", MLP(12, 16, 4, num_layers=3)), ("ffn", FFN(12, 20))]
)
def test_equals_the_reference(name, module):
    module.load_state_dict(weights_of(name))  # strict: keys and shapes are the reference's
    numbers = golden("layers")
    out = module(tensor(numbers["mlp/in"]))
    torch.testing.assert_close(out, tensor(numbers[f"{name}/out"]), rtol=1e-6, atol=1e-6)


def test_mlp_of_one_layer_is_linear():
    mlp = MLP(3, 99, 5, num_layers=1)
    x = torch.randn(7, 3)
    torch.testing.assert_close(mlp(x), nn.functional.linear(x, *mlp.layers[0].parameters()))


def test_mlp_ends_without_relu():
    assert (MLP(3, 8, 64, num_layers=2)(torch.randn(7, 3)) < 0).any()


def test_ffn_adds_the_given_identity_instead_of_its_input():
    ffn, x = FFN(6, 10), torch.randn(2, 3, 6)
    torch.testing.assert_close(ffn(x, identity=torch.zeros(6)), ffn(x) - x)


def test_ffn_without_identity_may_change_the_width():
    assert FFN(6, 10, output_dim=4, add_identity=False)(torch.randn(2, 6)).shape == (2, 4)


def test_ffn_has_the_layers_asked_for():
    ffn = FFN(6, 10, num_fcs=3, activation=nn.GELU(), ffn_drop=0.25, fc_bias=False)
    assert list(ffn.state_dict()) == ["layers.0.0.weight", "layers.1.0.weight", "layers.2.weight"]
    assert [m.p for m in ffn.modules() if isinstance(m, nn.Dropout)] == [0.25] * 3
    assert sum(isinstance(m, nn.GELU) for m in ffn.layers[0]) == 1


def test_sizes_that_cannot_work_are_refused_when_built():
    with pytest.raises(ValueError, match="`output_dim`=4"):
        FFN(6, 10, output_dim=4)
    with pytest.raises(ValueError, match="`num_fcs`=1"):
        FFN(6, 10, num_fcs=1)
    with pytest.raises(ValueError, match="`num_layers`=0"):
        MLP(6, 10, 4, num_layers=0)


def test_ffn_takes_a_single_token():
    ffn, x = FFN(6, 10).eval(), torch.randn(6)
    torch.testing.assert_close(ffn(x), ffn(x[None])[0])
