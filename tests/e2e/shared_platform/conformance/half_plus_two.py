# SPDX-License-Identifier: Apache-2.0
"""Run in a process of its own, for it imports TensorFlow: saves the models that TensorFlow Serving's documents ask.

``half_plus_two.py FOLDER TERM`` writes a SavedModel of ``x / 2 + TERM`` into the folder, with the signatures, tensors
and shapes of TensorFlow Serving's own ``saved_model_half_plus_two`` and, by the names that its REST documentation uses,
of ``saved_model_half_plus_three``.
"""

import sys

import tensorflow as tf

PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))


def save(folder: str, term: float) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        half = v1.get_variable("a", initializer=0.5, use_resource=True)
        added = v1.get_variable("b", initializer=term, use_resource=True)
        text = v1.placeholder(tf.string, [None], name="tf_example")
        parsed = tf.io.parse_example(text, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        x = tf.identity(parsed["x"], name="x")
        y = tf.add(tf.multiply(half, x), added, name="y")
        pictures = v1.placeholder(tf.string, [None], name="pictures")
        session.run(v1.global_variables_initializer())

        def signature(inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor], method: str) -> object:
            infos = [{n: v1.saved_model.build_tensor_info(t) for n, t in one.items()} for one in (inputs, outputs)]
            return v1.saved_model.build_signature_def(*infos, method)

        regress = signature({"inputs": text}, {"outputs": y}, REGRESS)
        signatures = {
            "serving_default": signature({"x": x}, {"y": y}, PREDICT),
            "regress_x_to_y": regress,
            REGRESS: regress,
            "classify_x_to_y": signature({"inputs": text}, {"scores": y}, CLASSIFY),
            "pictures": signature(
                {"picture_bytes": pictures},
                {"length": tf.strings.length(pictures), "same_bytes": tf.identity(pictures)},
                PREDICT,
            ),
        }
        builder = v1.saved_model.Builder(folder)
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


if __name__ == "__main__":
    save(sys.argv[1], float(sys.argv[2]))
