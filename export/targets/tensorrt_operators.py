"""What the ONNX parsers of TensorRT read: operator by operator, the dtypes that they take.

Read off `docs/operators.md` of github.com/onnx/onnx-tensorrt, at
    8.6     branch release/8.6-GA (6ba67d3)
    10.3    branch 10.1-GA (96e7811): by docs/Changelog.md 10.2 and 10.3 add no operator and no dtype
    11      the table headed "TensorRT 10.15", the newest that could be read: that 11.0 parses all of it is assumed
Quantised types are left out. DequantizeLinear has no row: it reads nothing but those.
"""

# dtypes as the tables spell them -> the operators that take exactly these
_TRT_8_6 = {
    "BOOL": ("And Not Or Xor"),
    "FP32": ("ConstantOfShape"),
    "FP32 FP16": (
        "Acos Acosh Asin Asinh Atan Atanh BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh CumSum "
        "Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample "
        "GroupNormalization HardSigmoid HardSwish ImageScaler InstanceNormalization IsInf LRN LSTM "
        "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool "
        "MeanVarianceNormalization NonMaxSuppression NonZero PRelu ParametricSoftplus Pow QuantizeLinear RNN "
        "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Resize RoiAlign "
        "Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu "
        "Upsample"
    ),
    "FP32 FP16 INT32": (
        "Abs Add ArgMax ArgMin AveragePool DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual "
        "Max Mean Min Mod Mul Neg Pad Range Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum "
        "TopK"
    ),
    "FP32 FP16 INT32 BOOL": (
        "Concat Constant Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape "
        "ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where"
    ),
    "FP32 FP16 INT32 UINT8 BOOL": ("Cast"),
}

_TRT_10_3 = {
    "BOOL": ("And Not Or Xor"),
    "FP32 FP16": ("DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
    "FP32 FP16 BF16": (
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos "
        "Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
        "GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM "
        "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool "
        "MeanVarianceNormalization PRelu ParametricSoftplus Pow QuantizeLinear RNN RandomNormal RandomNormalLike "
        "RandomUniform RandomUniformLike Reciprocal Resize Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax "
        "Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample"
    ),
    "FP32 FP16 BF16 INT32 BOOL": ("ConstantOfShape"),
    "FP32 FP16 BF16 INT32 INT64": (
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean "
        "Min Mod Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub "
        "Sum TopK"
    ),
    "FP32 FP16 BF16 INT32 INT64 BOOL": (
        "Concat Constant Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape "
        "ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where"
    ),
    "FP32 FP16 BF16 INT32 INT64 UINT8 BOOL": ("Cast CastLike"),
}

# Added since, or with more dtypes than in 10.3.
_SINCE_10_3 = {
    "FP32": "STFT",
    "FP32 FP16": "BlackmanWindow HammingWindow HannWindow",
    "FP32 FP16 BF16": "Attention RMSNormalization RotaryEmbedding",
    "FP32 FP16 BF16 INT32": "TensorScatter",
    "FP32 FP16 BF16 INT32 INT64": "Pow",
    "FP32 FP16 BF16 INT32 INT64 BOOL": "ConstantOfShape",
}


def _by_operator(table: dict[str, str]) -> dict[str, frozenset[str]]:
    return {name: frozenset(dtypes.split()) for dtypes, names in table.items() for name in names.split()}


TRT_8_6 = _by_operator(_TRT_8_6)
TRT_10_3 = _by_operator(_TRT_10_3)
TRT_11 = TRT_10_3 | _by_operator(_SINCE_10_3)
