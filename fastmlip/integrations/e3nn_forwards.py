"""e3nn's classes that fast modules of several hosts stand for, as ``make fingerprints`` has them.

The code that e3nn generates for each instance is made of what the fast modules are made of: irreps
and instructions.
"""

TENSOR_PRODUCT = {
    "108f7426059630a1": "e3nn 0.4.4 to 0.5.1",
    "6928bd007213b2f3": "e3nn 0.5.2 to 0.6.0",
}
KNOWN = {
    "e3nn.o3._linear.Linear": {"95ba651c768072a6": "e3nn 0.4.4 to 0.6.0"},
    "e3nn.o3._tensor_product._tensor_product.TensorProduct": TENSOR_PRODUCT,
    "e3nn.o3._tensor_product._sub.FullyConnectedTensorProduct": TENSOR_PRODUCT,
    "e3nn.o3._tensor_product._sub.ElementwiseTensorProduct": TENSOR_PRODUCT,
    "e3nn.o3._spherical_harmonics.SphericalHarmonics": {
        "111e855a5672a889": "e3nn 0.4.4 to 0.5.0",
        "0731426432b402c5": "e3nn 0.5.1 to 0.5.3",
        "3316d4db750078a6": "e3nn 0.5.5 to 0.6.0",
    },
    # its forward is torch's
    "e3nn.nn._fc.FullyConnectedNet": {"e3b0c44298fc1c14": "e3nn 0.4.4 to 0.6.0"},
    "e3nn.nn._fc._Layer": {"a81520a75d823b41": "e3nn 0.4.4 to 0.6.0"},
    "e3nn.nn._gate.Gate": {"b2ff65bd57a92a4e": "e3nn 0.4.4 to 0.6.0"},
    "e3nn.nn._gate._Sortcut": {"d1c26689bb420589": "e3nn 0.4.4 to 0.6.0"},
    "e3nn.nn._extract.Extract": {"d10f81b80e3bca36": "e3nn 0.4.4 to 0.6.0"},
    "e3nn.nn._activation.Activation": {
        "12210606a30e9ada": "e3nn 0.4.4 to 0.5.1",
        "e8bb37417c415211": "e3nn 0.5.2 to 0.6.0",
    },
    "e3nn.math._normalize_activation.normalize2mom": {"e8b4d785e631b72c": "e3nn 0.4.4 to 0.6.0"},
}
