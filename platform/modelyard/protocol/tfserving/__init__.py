# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Serving's protocol, REST and gRPC, for models of every framework.

Over REST it shares v1's paths with KServe. Its own rules of JSON hold for models whose signature comes from a
SavedModel; all others keep KServe's leniency.

::

    status    the states of a model's versions
    metadata  the signatures of a model
    predict   the JSON of ``:predict``
    examples  ``tf.Example``: the JSON of ``:classify`` and ``:regress``, and what such signatures answer
    tensors   ``TensorProto`` to arrays and back
    messages  the messages of ``PredictionService``
    reload    the configuration in ``HandleReloadConfigRequest``

Source: TensorFlow Serving "RESTful API" and ``tensorflow_serving/apis/*.proto``; where these are silent, its sources,
which each module names.
"""
