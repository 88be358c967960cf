"""A routing model on a CPU behind the tensors of TensorRT-LLM's Triton backend.

Needs numpy and openvino alone, so that the model server's Python environment stays small.
"""
