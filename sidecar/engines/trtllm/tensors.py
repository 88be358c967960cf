"""The tensors of TensorRT-LLM's `tensorrt_llm` model.

Source: triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt of
NVIDIA/TensorRT-LLM 1.2, whose placeholders for types are filled in: logits in FP32 as the engine is
built with `--logits_dtype float32`, and FP16 for tables that routing does not use.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    Args:
        datatype: of Triton, without `TYPE_`.
        dims: without the batch dimension.
        ragged: requests of one batch may differ in size.
        scalar: the backend gets it without dimensions.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = True
    ragged: bool = False
    scalar: bool = False


INPUTS = (
    Tensor("input_ids", "INT32", (-1,), ragged=True),
    Tensor("encoder_input_features", "FP16", (-1, -1), ragged=True),
    Tensor("encoder_output_lengths", "INT32", (1,), scalar=True),
    Tensor("input_lengths", "INT32", (1,), optional=False, scalar=True),
    Tensor("request_output_len", "INT32", (1,), optional=False, scalar=True),
    Tensor("num_return_sequences", "INT32", (1,), scalar=True),
    Tensor("draft_input_ids", "INT32", (-1,), ragged=True),
    Tensor("decoder_input_ids", "INT32", (-1,), ragged=True),
    Tensor("decoder_input_lengths", "INT32", (1,), scalar=True),
    Tensor("draft_logits", "FP32", (-1, -1), ragged=True),
    Tensor("draft_acceptance_threshold", "FP32", (1,), scalar=True),
    Tensor("end_id", "INT32", (1,), scalar=True),
    Tensor("pad_id", "INT32", (1,), scalar=True),
    Tensor("stop_words_list", "INT32", (2, -1), ragged=True),
    Tensor("bad_words_list", "INT32", (2, -1), ragged=True),
    Tensor("embedding_bias", "FP32", (-1,), ragged=True),
    Tensor("beam_width", "INT32", (1,), scalar=True),
    Tensor("temperature", "FP32", (1,), scalar=True),
    Tensor("runtime_top_k", "INT32", (1,), scalar=True),
    Tensor("runtime_top_p", "FP32", (1,), scalar=True),
    Tensor("runtime_top_p_min", "FP32", (1,), scalar=True),
    Tensor("runtime_top_p_decay", "FP32", (1,), scalar=True),
    Tensor("runtime_top_p_reset_ids", "INT32", (1,), scalar=True),
    Tensor("len_penalty", "FP32", (1,), scalar=True),
    Tensor("early_stopping", "BOOL", (1,), scalar=True),
    Tensor("repetition_penalty", "FP32", (1,), scalar=True),
    Tensor("min_tokens", "INT32", (1,), scalar=True),
    Tensor("beam_search_diversity_rate", "FP32", (1,), scalar=True),
    Tensor("presence_penalty", "FP32", (1,), scalar=True),
    Tensor("frequency_penalty", "FP32", (1,), scalar=True),
    Tensor("seed", "UINT64", (1,), scalar=True),
    Tensor("return_log_probs", "BOOL", (1,), scalar=True),
    Tensor("return_context_logits", "BOOL", (1,), scalar=True),
    Tensor("return_generation_logits", "BOOL", (1,), scalar=True),
    Tensor("return_perf_metrics", "BOOL", (1,), scalar=True),
    Tensor("return_num_input_tokens", "BOOL", (1,), scalar=True),
    Tensor("return_num_output_tokens", "BOOL", (1,), scalar=True),
    Tensor("exclude_input_in_output", "BOOL", (1,), scalar=True),
    Tensor("stop", "BOOL", (1,), scalar=True),
    Tensor("streaming", "BOOL", (1,), scalar=True),
    Tensor("prompt_embedding_table", "FP16", (-1, -1), ragged=True),
    Tensor("prompt_table_extra_ids", "UINT64", (-1,), ragged=True),
    Tensor("prompt_vocab_size", "INT32", (1,), scalar=True),
    Tensor("cross_attention_mask", "BOOL", (-1, -1), ragged=True),
    Tensor("mrope_rotary_cos_sin", "FP32", (-1,)),
    Tensor("mrope_position_deltas", "INT64", (1,)),
    Tensor("lora_task_id", "UINT64", (1,), scalar=True),
    Tensor("lora_weights", "FP16", (-1, -1), ragged=True),
    Tensor("lora_config", "INT32", (-1, 3), ragged=True),
    Tensor("context_phase_params", "UINT8", (-1,), ragged=True),
    Tensor("skip_cross_attn_blocks", "BOOL", (1,), ragged=True),
    Tensor("retention_token_range_starts", "INT32", (-1,), ragged=True),
    Tensor("retention_token_range_ends", "INT32", (-1,), ragged=True),
    Tensor("retention_token_range_priorities", "INT32", (-1,), ragged=True),
    Tensor("retention_token_range_durations_ms", "INT32", (-1,), ragged=True),
    Tensor("retention_decode_priority", "INT32", (1,), ragged=True),
    Tensor("retention_decode_duration_ms", "INT32", (1,), ragged=True),
    Tensor("guided_decoding_guide_type", "STRING", (1,), ragged=True),
    Tensor("guided_decoding_guide", "STRING", (1,), ragged=True),
    Tensor("lookahead_window_size", "INT32", (1,), ragged=True),
    Tensor("lookahead_ngram_size", "INT32", (1,), ragged=True),
    Tensor("lookahead_verification_set_size", "INT32", (1,), ragged=True),
)

OUTPUTS = (
    Tensor("output_ids", "INT32", (-1, -1)),
    Tensor("sequence_length", "INT32", (-1,)),
    Tensor("cum_log_probs", "FP32", (-1,)),
    Tensor("output_log_probs", "FP32", (-1, -1)),
    Tensor("context_logits", "FP32", (-1, -1)),
    Tensor("generation_logits", "FP32", (-1, -1, -1)),
    Tensor("batch_index", "INT32", (1,)),
    Tensor("sequence_index", "INT32", (1,)),
    Tensor("context_phase_params", "UINT8", (-1,)),
    Tensor("kv_cache_alloc_new_blocks", "INT32", (1,)),
    Tensor("kv_cache_reused_blocks", "INT32", (1,)),
    Tensor("kv_cache_alloc_total_blocks", "INT32", (1,)),
    Tensor("arrival_time_ns", "INT64", (1,)),
    Tensor("first_scheduled_time_ns", "INT64", (1,)),
    Tensor("first_token_time_ns", "INT64", (1,)),
    Tensor("last_token_time_ns", "INT64", (1,)),
    Tensor("acceptance_rate", "FP32", (1,)),
    Tensor("total_accepted_draft_tokens", "INT32", (1,)),
    Tensor("total_draft_tokens", "INT32", (1,)),
    Tensor("num_input_tokens", "INT32", (1,)),
    Tensor("num_output_tokens", "INT32", (1,)),
)
