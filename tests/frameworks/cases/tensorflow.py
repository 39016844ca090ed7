# SPDX-License-Identifier: Apache-2.0
"""TensorFlow: each function saves one model into a folder and says what the library answers for the same artifact."""

import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from modelyard.testing import Case
from modelyard_deployments._tensorflow_start import import_keras, import_tensorflow


def _tf() -> Any:
    tf = import_tensorflow()
    tf.random.set_seed(7)
    return tf


def _keras() -> Any:
    keras = import_keras()
    keras.utils.set_random_seed(7)
    return keras


def _write(model: Any, folder: Path, name: str = "model.keras") -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras has variables that numpy finds old
        model.save(folder / name)


def _rows(width: int = 4, rows: int = 5) -> Any:
    return np.random.default_rng(7).normal(size=(rows, width)).astype(np.float32)


def _texts(*texts: str | bytes) -> Any:
    return np.array([text.encode() if isinstance(text, str) else text for text in texts], dtype=object)


def _spec(shape: list[int | None] | None, dtype: Any, name: str) -> Any:
    tf = _tf()
    return tf.TensorSpec(shape, tf.dtypes.as_dtype(dtype), name=name)


def _save(folder: Path, module: Any = None, **signatures: tuple[Any, list[Any]]) -> None:
    """A SavedModel; a signature is a function and the specifications of its arguments."""
    tf = _tf()
    functions = {name: tf.function(one, input_signature=specs) for name, (one, specs) in signatures.items()}
    tf.saved_model.save(module or tf.Module(), str(folder), signatures=functions)


def _ask(folder: Path, signature: str = "serving_default", **inputs: Any) -> dict[str, Any]:
    tf = _tf()
    loaded = tf.saved_model.load(str(folder))
    answers = loaded.signatures[signature](**{name: tf.constant(array) for name, array in inputs.items()})
    return {name: answer.numpy() for name, answer in answers.items()}


def _network() -> Any:
    """A module with weights, and a function of theirs: ``[n,4]`` to ``[n,3]``."""
    tf = _tf()
    module = tf.Module()
    rng = np.random.default_rng(0)
    module.hidden = tf.Variable(rng.normal(size=(4, 8)).astype("f"), name="hidden")
    module.last = tf.Variable(rng.normal(size=(8, 3)).astype("f"), name="last")
    module.scores = lambda x: tf.matmul(tf.nn.relu(tf.matmul(x, module.hidden)), module.last)
    return module


def _example(**features: Any) -> bytes:
    tf = _tf()
    lists = {name: tf.train.Feature(float_list=tf.train.FloatList(value=one)) for name, one in features.items()}
    text: bytes = tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()
    return text


def several_signatures(folder: Path) -> Case:
    tf = _tf()
    module = _network()

    def predict(x: Any) -> Any:
        logits = module.scores(x)
        return {"logits": logits, "scores": tf.nn.softmax(logits), "best": tf.argmax(logits, axis=1)}

    def classify(inputs: Any) -> Any:
        parsed = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([4], tf.float32)})
        scores = tf.nn.softmax(module.scores(parsed["x"]))
        return {"classes": tf.gather(["a", "b", "c"], tf.argsort(scores, axis=1)), "scores": tf.sort(scores)}

    matrix, examples = [_spec([None, 4], "float32", "x")], [_spec([None], "string", "inputs")]
    twice = (lambda x: {"twice": x * 2}), [_spec([None, 4], "float32", "x")]
    _save(folder, module, serving_default=(predict, matrix), classify=(classify, examples), twice=twice)
    return Case({"x": _rows()}, _ask(folder, x=_rows()))


def signature_of_examples(folder: Path) -> Case:
    several_signatures(folder)
    rows = np.array([_example(x=row) for row in _rows()], dtype=object)
    return Case({"inputs": rows}, _ask(folder, "classify", inputs=rows), {"signature": "classify"})


def only_signature_has_another_name(folder: Path) -> Case:
    _save(folder, anything=(lambda y, x: {"sum": x + y}, [_spec([None], "int32", "y"), _spec([None], "int32", "x")]))
    rows = {"x": np.int32([1, 2, 3]), "y": np.int32([5, 6, 7])}
    return Case(rows, _ask(folder, "anything", **rows))


def model_in_a_folder_of_its_own(folder: Path) -> Case:
    _save(folder / "export", serving_default=(lambda x: {"y": -x}, [_spec([None, 2], "float64", "x")]))
    (folder / "README.md").write_text("about it")
    return Case({"x": np.eye(2)}, {"y": -np.eye(2)})


def graph_in_text(folder: Path) -> Case:
    from google.protobuf import text_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    _save(folder, serving_default=(lambda x: {"y": -x}, [_spec([None, 2], "float64", "x")]))
    graph = folder / "saved_model.pb"
    (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(SavedModel.FromString(graph.read_bytes())))
    graph.unlink()
    return Case({"x": np.eye(2)}, _ask(folder, x=np.eye(2)))


def numbers_of_every_datatype(folder: Path) -> Case:
    kinds = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
    kinds += ["float16", "float32", "float64"]
    specs = [_spec([None, 2], kind, kind) for kind in kinds]

    def same(*tensors: Any) -> Any:
        return {f"{kind}_out": _tf().identity(tensor) for kind, tensor in zip(kinds, tensors, strict=True)}

    _save(folder, serving_default=(same, specs))
    rows = {}
    for kind in kinds:
        dtype = np.dtype(kind)
        largest = np.iinfo(dtype).max if dtype.kind in "iu" else 1
        rows[kind] = np.array([[0, 1], [1, largest], [largest, 0]], dtype=dtype)
    return Case(rows, {f"{kind}_out": rows[kind] for kind in kinds})


def bfloat16(folder: Path) -> Case:
    tf = _tf()

    def add(x: Any) -> Any:
        return {"y": x + x, "wide": tf.cast(x, tf.float32)}

    _save(folder, serving_default=(add, [_spec([None, 2], "bfloat16", "x")]))
    rows = np.arange(6).reshape(3, 2).astype(ml_dtypes.bfloat16)
    return Case({"x": rows}, _ask(folder, x=rows))


def texts(folder: Path) -> Case:
    tf = _tf()

    def join(left: Any, right: Any) -> Any:
        return {"both": tf.strings.join([left, right]), "size": tf.strings.length(left)}

    _save(folder, serving_default=(join, [_spec([None], "string", "left"), _spec([None], "string", "right")]))
    rows = {"left": _texts("a", "ü", "", b"\xff\x00"), "right": _texts("b", "€", "x\0y", "z")}
    return Case(rows, _ask(folder, **rows))


def table_in_a_file(folder: Path) -> Case:
    tf = _tf()
    words = folder / "words.txt"
    words.write_text("red\ngreen\n")
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        ),
        -1,
    )
    _save(folder, module, serving_default=(lambda w: {"n": module.table.lookup(w)}, [_spec([None], "string", "w")]))
    words.unlink()
    rows = _texts("green", "red", "blue")
    return Case({"w": rows}, _ask(folder, w=rows))


def any_rank(folder: Path) -> Case:
    _save(folder, serving_default=(lambda x: {"y": x * 2}, [_spec(None, "float32", "x")]))
    rows = np.float32([1, 2, 3])
    return Case({"x": rows}, _ask(folder, x=rows))


def rank_found_by_trial(folder: Path) -> Case:
    tf = _tf()

    def use(x: Any) -> Any:
        return {"twice": tf.concat([x, x], axis=1), "sum": tf.reduce_sum(x, axis=1)}

    _save(folder, serving_default=(use, [_spec(None, "float32", "x")]))
    return Case({"x": _rows()}, _ask(folder, x=_rows()))


def fixed_size(folder: Path) -> Case:
    _save(folder, serving_default=(lambda x: {"y": abs(x)}, [_spec([2, 2], "float32", "x")]))
    rows = np.float32([[-1, 2], [3, -4]])
    return Case({"x": rows}, _ask(folder, x=rows))


def single_values(folder: Path) -> Case:
    tf = _tf()

    def use(text: Any, number: Any) -> Any:
        return {"upper": tf.strings.upper(text), "half": number / 2}

    _save(folder, serving_default=(use, [_spec([], "string", "text"), _spec([], "float32", "number")]))
    given = {"text": np.array(b"abc", dtype=object), "number": np.array(3, dtype=np.float32)}
    return Case(given, {"upper": np.array(b"ABC", dtype=object), "half": np.array(1.5, dtype=np.float32)})


def rows_that_see_each_other(folder: Path) -> Case:
    tf = _tf()
    _save(folder, serving_default=(lambda x: {"y": tf.nn.softmax(x, axis=0)}, [_spec([None, 4], "float32", "x")]))
    return Case({"x": _rows()}, _ask(folder, x=_rows()))


def tokens_of_any_length(folder: Path) -> Case:
    tf = _tf()
    module = tf.Module()
    module.table = tf.Variable(np.random.default_rng(0).normal(size=(50, 8)).astype("f"))

    def embed(ids: Any, mask: Any) -> Any:
        words = tf.gather(module.table, ids)
        return {"vector": tf.reduce_sum(words * mask[:, :, None], axis=1), "words": words}

    _save(
        folder,
        module,
        serving_default=(embed, [_spec([None, None], "int64", "ids"), _spec([None, None], "float32", "mask")]),
    )
    rng = np.random.default_rng(1)
    rows = {"ids": rng.integers(0, 50, (4, 6)), "mask": rng.integers(0, 2, (4, 6)).astype("f")}
    return Case(rows, _ask(folder, **rows))


def image(folder: Path) -> Case:
    tf = _tf()
    module = tf.Module()
    module.kernel = tf.Variable(np.random.default_rng(0).normal(size=(3, 3, 3, 5)).astype("f"))

    def pool(x: Any) -> Any:
        return {"y": tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, module.kernel, 1, "VALID")), axis=[1, 2])}

    _save(folder, module, serving_default=(pool, [_spec([None, None, None, 3], "float32", "x")]))
    rows = np.random.default_rng(1).random((3, 16, 16, 3)).astype("f")
    return Case({"x": rows}, _ask(folder, x=rows))


def input_with_default(folder: Path) -> Case:
    two = _tf().constant(2.0)

    def scale(x: Any, factor: Any = two) -> Any:
        return {"y": x * factor}

    _save(folder, serving_default=(scale, [_spec([None, 4], "float32", "x"), _spec([], "float32", "factor")]))
    factor = np.array(5, dtype=np.float32)
    return Case({"x": _rows(), "factor": factor}, _ask(folder, x=_rows(), factor=factor))


def two_outputs_of_one_tensor(folder: Path) -> Case:
    def twice(x: Any) -> Any:
        y = x + 1
        return {"a": y, "b": y, "x": x}

    _save(folder, serving_default=(twice, [_spec([None, 4], "float32", "x")]))
    return Case({"x": _rows()}, {"a": _rows() + 1, "b": _rows() + 1, "x": _rows()})


def _save_of_tensorflow_1(folder: Path) -> None:
    """With placeholders of no shape, a reference variable, a table, and an output that is an input."""
    v1 = _tf().compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        text = v1.placeholder(v1.string, name="tf_example")
        x = v1.identity(v1.io.parse_example(text, {"x": v1.io.FixedLenFeature([2], v1.float32)})["x"], name="x")
        weights = v1.get_variable("w", initializer=np.float32([[1, 2, 3], [4, 5, 6]]), use_resource=False)
        scores = v1.nn.softmax(v1.matmul(x, weights))
        names = v1.lookup.KeyValueTensorInitializer(v1.constant([0, 1, 2], v1.int64), v1.constant(["a", "b", "c"]))
        table = v1.lookup.StaticHashTable(names, "?")
        values, indexes = v1.nn.top_k(scores, 3)
        classes = table.lookup(v1.cast(indexes, v1.int64))
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": _signature_of_1(
                    "classify", {"inputs": text}, {"classes": classes, "scores": values}
                ),
                "regress": _signature_of_1("regress", {"inputs": text}, {"outputs": v1.reduce_sum(x, axis=1)}),
                "predict": _signature_of_1("predict", {"x": x}, {"scores": scores, "weights": weights, "same": x}),
            },
            main_op=v1.tables_initializer(),
        )
        builder.save()


def _signature_of_1(method: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    v1 = _tf().compat.v1
    describe = v1.saved_model.utils.build_tensor_info
    return v1.saved_model.signature_def_utils.build_signature_def(
        {name: describe(tensor) for name, tensor in inputs.items()},
        {name: describe(tensor) for name, tensor in outputs.items()},
        f"tensorflow/serving/{method}",
    )


def _ask_1(folder: Path, signature: str, **inputs: Any) -> dict[str, Any]:
    """What a session answers: ``tf.saved_model.load`` refuses outputs that are variables or inputs."""
    v1 = _tf().compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        found = v1.saved_model.load(session, ["serve"], str(folder)).signature_def[signature]
        fetches = {name: info.name for name, info in found.outputs.items()}
        answers: dict[str, Any] = session.run(fetches, {found.inputs[name].name: rows for name, rows in inputs.items()})
    return answers


def examples_of_tensorflow_1(folder: Path) -> Case:
    _save_of_tensorflow_1(folder)
    rows = np.array([_example(x=row) for row in _rows(2)], dtype=object)
    return Case({"inputs": rows}, _ask_1(folder, "serving_default", inputs=rows))


def regression_of_tensorflow_1(folder: Path) -> Case:
    _save_of_tensorflow_1(folder)
    rows = np.array([_example(x=row) for row in _rows(2)], dtype=object)
    return Case({"inputs": rows}, _ask_1(folder, "regress", inputs=rows), {"signature": "regress"})


def matrix_of_tensorflow_1(folder: Path) -> Case:
    _save_of_tensorflow_1(folder)
    return Case({"x": _rows(2)}, _ask_1(folder, "predict", x=_rows(2)), {"signature": "predict"})


def _layers(**inputs: tuple[tuple[int | None, ...], str]) -> dict[str, Any]:
    keras = _keras()
    return {name: keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in inputs.items()}


def _two_inputs() -> Any:
    keras = _keras()
    given = _layers(measurements=((4,), "float32"), group=((1,), "int32"))
    embedded = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(given["group"]))
    joined = keras.layers.Concatenate()([keras.layers.Dense(8, "relu")(given["measurements"]), embedded])
    outputs = [keras.layers.Dense(3, "softmax", name="species")(joined), keras.layers.Dense(1, name="size")(joined)]
    return keras.Model(list(given.values()), outputs)


def _groups() -> dict[str, Any]:
    return {"measurements": _rows(), "group": np.int32([[0], [1], [2], [3], [4]])}


def keras_functional(folder: Path) -> Case:
    model = _two_inputs()
    _write(model, folder)
    species, size = model(list(_groups().values()))
    return Case(_groups(), {"species": species.numpy(), "size": size.numpy()})


def keras_sequential(folder: Path) -> Case:
    keras = _keras()
    layers = [keras.Input((4,), name="x"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([*layers, keras.layers.Dense(3, "softmax", name="scores")])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(_rows(), np.int32([0, 1, 2, 0, 1]), epochs=2, verbose=0)
    _write(model, folder)
    return Case({"x": _rows()}, {"scores": model.predict(_rows(), verbose=0)})


def keras_dictionaries(folder: Path) -> Case:
    keras = _keras()
    given = _layers(b=((2,), "float32"), a=((2,), "float64"))
    outputs = {"sum": keras.layers.Add()(list(given.values())), "b_twice": keras.ops.multiply(given["b"], 2)}
    model = keras.Model(given, outputs)
    _write(model, folder)
    rows = {"b": _rows(2), "a": np.eye(5, 2)}
    return Case(rows, {name: answer.numpy() for name, answer in model(rows).items()})


def keras_hdf5(folder: Path) -> Case:
    keras = _keras()
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="scores")])
    _write(model, folder, "model.h5")
    return Case({"x": _rows()}, {"scores": model(_rows()).numpy()})


def keras_texts(folder: Path) -> Case:
    keras = _keras()
    text = keras.Input((1,), dtype="string", name="text")
    words = keras.layers.TextVectorization(vocabulary=["red", "green", "blue"], output_sequence_length=4, name="words")
    model = keras.Model(text, keras.layers.Dense(2, name="scores")(keras.layers.Embedding(10, 3)(words(text))))
    _write(model, folder)
    rows = _texts("red green", "Blue", "")[:, None]
    return Case({"text": rows}, {"scores": model(_tf().constant(rows)).numpy()})


def keras_shared_layer(folder: Path) -> Case:
    keras = _keras()
    given = _layers(a=((4,), "float32"), b=((4,), "float32"))
    layer = keras.layers.Dense(2, name="dense")
    model = keras.Model(list(given.values()), [layer(given["a"]), layer(given["b"])])
    _write(model, folder)
    rows = {"a": _rows(), "b": -_rows()}
    first, second = model(list(rows.values()))
    return Case(rows, {"dense": first.numpy(), "dense_1": second.numpy()})


def keras_names_of_columns(folder: Path) -> Case:
    keras = _keras()
    given = [keras.Input((1,), name=name) for name in ("petal length (cm)", "in", "width")]
    total = keras.layers.Dense(1, name="total-area")(keras.layers.Concatenate()(given))
    model = keras.Model({one.name: one for one in given}, {"total area": total, "a/b": total * 2})
    _write(model, folder)
    rows = {one.name: _rows(1) + place for place, one in enumerate(given)}
    return Case(rows, {name: answer.numpy() for name, answer in model(rows).items()})


def keras_recurrent(folder: Path) -> Case:
    keras = _keras()
    layers = [keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True)), keras.layers.GRU(2, name="last")]
    model = keras.Sequential([keras.Input((None, 3), name="x"), *layers])
    _write(model, folder)
    rows = np.random.default_rng(1).random((3, 7, 3)).astype("f")
    return Case({"x": rows}, {"last": model(rows).numpy()})


def compiled_by_xla(folder: Path) -> Case:
    tf = _tf()
    module = _network()
    function = tf.function(
        lambda x: {"y": module.scores(x)}, jit_compile=True, input_signature=[_spec([None, 4], "float32", "x")]
    )
    tf.saved_model.save(module, str(folder), signatures=function)
    return Case({"x": _rows()}, _ask(folder, x=_rows()))


def keras_exported(folder: Path) -> Case:
    model = _two_inputs()
    model.export(folder, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Case(_groups(), _ask(folder, **_groups()))
