"""Every op is there for every kind of device, and says the same in the schema, in Python and in C++."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import multikv
from multikv import platforms, reference
from tests.support.calls import ONE_OF_EACH
from tests.support.calls.reshape_and_cache import flash_arguments
from tests.support.devices import serves_gpu
from tests.support.processes import ROOT

ALL_OPS = platforms.op_names()


def schema_of(op):
    return getattr(torch.ops.multikv, op).default._schema


def test_these_tests_know_all_ops():
    assert sorted(ONE_OF_EACH) == ALL_OPS


@pytest.mark.parametrize("key", ["CPU", "Meta", "CUDA"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_kernels(op, key):
    """Where no library serves a GPU, the CUDA key has a kernel that says why."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"multikv::{op}", key)


@pytest.mark.parametrize("key", ["CPU", "CUDA"])
def test_no_kernel_without_a_schema(key):
    registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    ours = sorted(name.removeprefix("multikv::") for name in registered if name.startswith("multikv::"))
    assert ours == ALL_OPS


@pytest.mark.parametrize("op", ALL_OPS)
def test_returns_nothing_and_writes_something(op):
    schema = schema_of(op)
    assert not schema.returns
    assert any(argument.alias_info and argument.alias_info.is_write for argument in schema.arguments)
    assert not any(argument.kwarg_only for argument in schema.arguments)


@pytest.mark.parametrize("module", [multikv, reference], ids=["python", "reference"])
@pytest.mark.parametrize("op", ALL_OPS)
def test_python_signatures(op, module):
    parameters = inspect.signature(getattr(module, op)).parameters.values()
    ours = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    theirs = [
        (a.name, a.default_value if a.has_default_value() else inspect.Parameter.empty) for a in schema_of(op).arguments
    ]
    assert ours == theirs


@pytest.mark.parametrize("op", ALL_OPS)
def test_exported_and_documented(op):
    function = getattr(multikv, op)
    assert op in multikv.__all__
    for argument in schema_of(op).arguments:
        assert f"{argument.name}:" in function.__doc__


@pytest.mark.skipif(serves_gpu(), reason="a library serves GPU tensors here")
def test_gpu_tensors_are_refused_with_a_reason():
    """Calls the op as the dispatcher would for GPU tensors, which this host cannot make."""
    op = torch.ops.multikv.reshape_and_cache_flash.default
    with pytest.raises(RuntimeError) as caught:
        op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *flash_arguments().values())
    reasons = [f"{library.name}: {library.reason}" for library in platforms.libraries() if library.name != "cpu"]
    assert str(caught.value) == (
        f"reshape_and_cache_flash: no multikv library serves GPU tensors on this host ({'; '.join(reasons)})"
    )


# -- the check at compile time: a schema against the C++ function that receives its arguments --------------------------

TRANSLATION_UNIT = """
#include "ops.h"
#include "frontend/torch/register.h"
namespace multikv {{
struct Params {{}};
inline constexpr char schema_text[] = "{schema}";
Params make_params(Call&, {parameters});
void implement_one(Library& m) {{ implement<schema_text, make_params>(m); }}
}}
"""
PARAMETERS = (
    "const MutableTensor&, const Tensor&, const MutableTensor&, const FormatName&, int64_t, "
    "const std::optional<Tensor>&"
)
SCHEMA = "op(Tensor(a!) x, Tensor y, Tensor(b!) z, str format, int n, Tensor? w=None) -> ()"
MISMATCH = "the schema and the parameters of its make_<op>_params differ"

# What is wrong -> the schema that says so, for PARAMETERS.
WRONG_SCHEMAS = {
    "tensor_and_int_swapped": "op(Tensor(a!) x, int y, Tensor(b!) z, str format, Tensor n, Tensor? w=None) -> ()",
    "int_for_tensor": "op(Tensor(a!) x, int y, Tensor(b!) z, str format, int n, Tensor? w=None) -> ()",
    "not_written": "op(Tensor x, Tensor y, Tensor(a!) z, str format, int n, Tensor? w=None) -> ()",
    "alias_without_write": "op(Tensor(a) x, Tensor y, Tensor(b!) z, str format, int n, Tensor? w=None) -> ()",
    "written_but_const": "op(Tensor(a!) x, Tensor(b!) y, Tensor(c!) z, str format, int n, Tensor? w=None) -> ()",
    "alias_letter": "op(Tensor(a!) x, Tensor y, Tensor(c!) z, str format, int n, Tensor? w=None) -> ()",
    "alias_letter_twice": "op(Tensor(a!) x, Tensor y, Tensor(a!) z, str format, int n, Tensor? w=None) -> ()",
    "one_too_few": "op(Tensor(a!) x, Tensor y, Tensor(b!) z, str format, int n) -> ()",
    "one_too_many": "op(Tensor(a!) x, Tensor y, Tensor(b!) z, str format, int n, Tensor? w=None, int m=0) -> ()",
    "none": "op() -> ()",
    "not_optional": "op(Tensor(a!) x, Tensor y, Tensor(b!) z, str format, int n, Tensor w) -> ()",
    "str_for_int": "op(Tensor(a!) x, Tensor y, Tensor(b!) z, str format, str n, Tensor? w=None) -> ()",
    "float_for_int": "op(Tensor(a!) x, Tensor y, Tensor(b!) z, str format, float n, Tensor? w=None) -> ()",
    "returns_a_tensor": "op(Tensor(a!) x, Tensor y, Tensor(b!) z, str format, int n, Tensor? w=None) -> Tensor",
}
# C++ parameters that no schema type stands for.
WRONG_PARAMETERS = {
    "int": PARAMETERS.replace("int64_t", "int"),
    "by_value": PARAMETERS.replace("const Tensor&", "Tensor"),
    "std_string": PARAMETERS.replace("const FormatName&", "std::string"),
}


@pytest.fixture
def compile(tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")

    def run(schema, parameters=PARAMETERS):
        source = tmp_path / "one_op.cpp"
        source.write_text(TRANSLATION_UNIT.format(schema=schema, parameters=parameters))
        include = Path(torch.__file__).parent / "include"
        flags = ["-std=c++20", "-fsyntax-only", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-fno-diagnostics-color"]
        paths = ["-isystem", include, "-isystem", include / "torch/csrc/api/include", f"-I{ROOT / 'csrc'}"]
        return subprocess.run([compiler, *flags, *paths, source], capture_output=True, text=True, env={"LC_ALL": "C"})

    return run


def test_matching_schema_compiles(compile):
    result = compile(SCHEMA)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("what", WRONG_SCHEMAS)
def test_mismatching_schema_does_not_compile(compile, what):
    result = compile(WRONG_SCHEMAS[what])
    assert result.returncode != 0
    assert MISMATCH in result.stderr


LISTS = "const TensorList&, const MutableTensorList&, const MutableTensor&"
WRONG_LISTS = {
    "tensor_for_list": "op(Tensor x, Tensor(a!)[] y, Tensor(b!) z) -> ()",
    "list_for_tensor": "op(Tensor[] x, Tensor(a!)[] y, Tensor(b!)[] z) -> ()",
    "tensor_for_written_list": "op(Tensor[] x, Tensor(a!) y, Tensor(b!) z) -> ()",
    "list_not_written": "op(Tensor[] x, Tensor[] y, Tensor(a!) z) -> ()",
    "list_written_but_const": "op(Tensor(a!)[] x, Tensor(b!)[] y, Tensor(c!) z) -> ()",
    "optional_list": "op(Tensor[] x, Tensor(a!)[]? y, Tensor(b!) z) -> ()",
    "alias_letter_of_list": "op(Tensor[] x, Tensor(b!)[] y, Tensor(a!) z) -> ()",
}


def test_matching_lists_compile(compile):
    result = compile("op(Tensor[] x, Tensor(a!)[] y, Tensor(b!) z) -> ()", LISTS)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("what", WRONG_LISTS)
def test_mismatching_lists_do_not_compile(compile, what):
    result = compile(WRONG_LISTS[what], LISTS)
    assert result.returncode != 0
    assert MISMATCH in result.stderr


@pytest.mark.parametrize("what", WRONG_PARAMETERS)
def test_parameters_unknown_to_schemas_do_not_compile(compile, what):
    result = compile(SCHEMA, WRONG_PARAMETERS[what])
    assert result.returncode != 0
    assert MISMATCH in result.stderr
