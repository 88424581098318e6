"""The smallest config of every text family with routed experts that still has all its parts."""

NUM_EXPERTS = 8
TOP_K = 2
VOCABULARY = 64

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOP = {"num_experts_per_tok": TOP_K}
EXPERTS = TOP | {"num_experts": NUM_EXPERTS, "moe_intermediate_size": 12, "intermediate_size": 24}
LOCAL = TOP | {"num_local_experts": NUM_EXPERTS, "intermediate_size": 12}
ROUTED = TOP | {
    "n_routed_experts": NUM_EXPERTS,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 12,
    "intermediate_size": 24,
    "norm_topk_prob": True,
}
HEADS = {"head_dim": 8}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
INDEXED = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4}
FIRST_DENSE = {"first_k_dense_replace": 1}
DENSE_SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
SPARSE = {"mlp_layer_types": ["sparse", "sparse", "sparse"]}
FULL = {"layer_types": ["full_attention"] * 3}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
ALTERNATING = SLIDING | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
HYPER = {"hc_mult": 2, "hc_sinkhorn_iters": 4}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 2,
}
KIMI = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_head_dim": 8,
    "linear_num_heads": 2,
    "linear_conv_kernel_dim": 2,
}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 2, "mamba_expand": 2}
GRANITE = LOCAL | {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}
SHORT_CONV = {"layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"], "conv_kernel_size": 2, "d_rel": 4}
SHORT_CONV |= {"swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "rel_extent": 8}
SHORT_CONV |= {"sliding_window_size": 8, "logits_mup_width_multiplier": 1.0, "route_scale": 1.5} | HEADS

CAUSAL = {
    "afmoe": EXPERTS | SLIDING | HEADS | {"num_shared_experts": 1, "num_dense_layers": 1, "route_scale": 1.5},
    "aria_text": {"moe_num_experts": NUM_EXPERTS, "moe_topk": TOP_K, "moe_num_shared_experts": 1}
    | {"intermediate_size": 12}
    | HEADS,
    "axk1": ROUTED | LATENT | DENSE_SPARSE,
    "axk2": ROUTED | LATENT | INDEXED | DENSE_SPARSE | {"gated_norm_rank": 4},
    "bailing_hybrid": EXPERTS
    | LATENT
    | KIMI
    | DENSE_SPARSE
    | {"num_shared_experts": 1, "num_expert_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0},
    "beam": EXPERTS | HEADS | SLIDING | DENSE_SPARSE | {"n_group": 1, "topk_group": 1},
    "cohere2_moe": EXPERTS | HEADS | SLIDING | DENSE_SPARSE | {"num_shared_experts": 1},
    "dbrx": {
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 3,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
    }
    | {
        "ffn_config": {
            "hidden_size": 16,
            "ffn_hidden_size": 12,
            "moe_num_experts": NUM_EXPERTS,
            "moe_top_k": TOP_K,
        }
    },
    "deepseek_v2": ROUTED | LATENT | FIRST_DENSE,
    "deepseek_v3": ROUTED | LATENT | FIRST_DENSE | {"num_nextn_predict_layers": 0},
    "deepseek_v32": ROUTED | LATENT | INDEXED | DENSE_SPARSE,
    "deepseek_v4": ROUTED
    | HEADS
    | INDEXED
    | HYPER
    | {"q_lora_rank": 8, "o_lora_rank": 8, "o_groups": 2, "mlp_layer_types": ["moe"] * 3, "num_key_value_heads": 1}
    | {
        "layer_types": [
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ]
    }
    | {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}}
    | {"sliding_window": 8, "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 0},
    "dots1": ROUTED | HEADS | FIRST_DENSE,
    "dots3_note_text": ROUTED
    | LATENT
    | INDEXED
    | DENSE_SPARSE
    | HEADS
    | {"shared_experts_intermediate_size": 10, "sliding_window": 8, "swa_head_dim": 16}
    | {
        f"swa_{key}": value
        for key, value in (LATENT | {"num_attention_heads": 2, "num_key_value_heads": 2}).items()
    },
    "ernie4_5_moe": {"moe_num_experts": NUM_EXPERTS, "moe_k": TOP_K, "moe_num_shared_experts": 1}
    | {"moe_intermediate_size": 12, "intermediate_size": 24, "moe_layer_start_index": 1, "moe_layer_end_index": 2},
    "exaone_moe": EXPERTS
    | HEADS
    | SLIDING
    | DENSE_SPARSE
    | {"num_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "flex_olmo": TOP | {"num_experts": NUM_EXPERTS, "intermediate_size": 12},
    "flint": EXPERTS | HEADS | FULL | {"mlp_only_layers": [1], "shared_expert_intermediate_size": 10},
    "gemma4_text": {"num_experts": NUM_EXPERTS, "top_k_experts": TOP_K, "enable_moe_block": True}
    | {"moe_intermediate_size": 12, "intermediate_size": 24, "hidden_size_per_layer_input": 0, "global_head_dim": 8}
    | ALTERNATING
    | HEADS,
    "glm4_moe": ROUTED | HEADS | FIRST_DENSE | {"num_nextn_predict_layers": 0},
    "glm4_moe_lite": ROUTED | LATENT | DENSE_SPARSE,
    "glm_moe_dsa": ROUTED | LATENT | INDEXED | DENSE_SPARSE,
    "gpt_oss": LOCAL | HEADS | SLIDING,
    "granitemoe": GRANITE,
    "granitemoe_swa": GRANITE | SLIDING | {"shared_intermediate_size": 10, "layer_rope_theta": [10000.0] * 3},
    "granitemoehybrid": GRANITE
    | MAMBA
    | {"shared_intermediate_size": 10, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    | {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_chunk_size": 8},
    "granitemoeshared": GRANITE | {"shared_intermediate_size": 10},
    "hunyuan_v1_moe": {"num_experts": NUM_EXPERTS, "moe_topk": TOP_K, "intermediate_size": 12} | HEADS,
    "hy_v3": EXPERTS | HEADS | DENSE_SPARSE | {"num_shared_experts": 1},
    "hy_v4": ROUTED | LATENT | INDEXED | DENSE_SPARSE | HEADS | {"hc_mult": 2},
    "inkling_text": ROUTED | SHORT_CONV | DENSE_SPARSE,
    "inkling2_text": TOP
    | SHORT_CONV
    | {"n_routed_experts": NUM_EXPERTS, "moe_intermediate_size": 12}
    | {"unpadded_vocab_size": VOCABULARY, "n_layers_per_attn_res_block": 2},
    "jamba": MAMBA
    | {"num_experts": NUM_EXPERTS, "intermediate_size": 12, "expert_layer_period": 2, "expert_layer_offset": 0}
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "jetmoe": LOCAL | {"kv_channels": 8, "num_attention_heads": 4},
    "kimi_linear": EXPERTS
    | LATENT
    | KIMI
    | DENSE_SPARSE
    | {"num_shared_experts": 1, "num_expert_group": 1, "topk_group": 1, "q_lora_rank": None},
    "kolibri1": TOP
    | HEADS
    | SLIDING
    | {"num_local_experts": NUM_EXPERTS, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 10},
    "laguna": EXPERTS
    | HEADS
    | SLIDING
    | DENSE_SPARSE
    | {"shared_expert_intermediate_size": 10, "num_attention_heads_per_layer": [2, 2, 2]},
    "lfm2_moe": EXPERTS | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    "llama4_text": LOCAL
    | HEADS
    | {"intermediate_size_mlp": 24, "moe_layers": [0, 2], "attention_chunk_size": 8}
    | {"layer_types": ["chunked_attention", "full_attention", "chunked_attention"]},
    "longcat_flash": LATENT
    | HEADS
    | {"num_layers": 2, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 12, "zero_expert_num": 2}
    | {"n_routed_experts": NUM_EXPERTS, "moe_topk": TOP_K},
    "mellum": TOP
    | HEADS
    | SLIDING
    | DENSE_SPARSE
    | {"num_local_experts": NUM_EXPERTS, "moe_intermediate_size": 12, "intermediate_size": 24},
    "mimo_v2_flash": ROUTED | HEADS | SLIDING | DENSE_SPARSE | {"v_head_dim": 8, "num_attention_heads": 4},
    "minimax": LOCAL
    | HEADS
    | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    | {"block_size": 8},
    "minimax_m2": LOCAL | HEADS,
    "minimax_m3_vl_text": LOCAL
    | HEADS
    | FULL
    | DENSE_SPARSE
    | {"dense_intermediate_size": 24, "shared_intermediate_size": 10, "rotary_dim": 4}
    | {"index_n_heads": 2, "index_head_dim": 8, "index_block_size": 4, "index_topk_blocks": 2},
    "mixtral": LOCAL,
    "nemotron_h": ROUTED
    | HEADS
    | {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"], "ssm_state_size": 8}
    | {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 8, "conv_kernel": 2}
    | {"moe_shared_expert_intermediate_size": 10, "use_mamba_kernels": False},
    "olmoe": TOP | {"num_experts": NUM_EXPERTS, "intermediate_size": 12, "norm_topk_prob": True},
    "phimoe": LOCAL | {"router_jitter_noise": 0.0},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 10, "norm_topk_prob": True},
    "qwen3_5_moe_text": EXPERTS | HEADS | LINEAR | {"shared_expert_intermediate_size": 10},
    "qwen3_moe": EXPERTS | HEADS | {"mlp_only_layers": [1], "norm_topk_prob": True},
    "qwen3_next": EXPERTS | HEADS | LINEAR | {"shared_expert_intermediate_size": 10, "norm_topk_prob": True},
    "qwen4_exp_text": EXPERTS
    | HEADS
    | LINEAR
    | {"shared_expert_intermediate_size": 10, "hc_count": 2}
    | {"hc_lowrank": 4, "ngram_vocab_size_base": 64, "split_ngram_parts": 2, "ple_embed_dim": 16}
    | {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4}
    | {"indexer_compress_ratio": 2},
    "solar_open": ROUTED | HEADS,
    "zaya": EXPERTS | HEADS | {"layer_types": ["hybrid"] * 3, "router_hidden_size": 12, "num_experts_per_tok": 1},
}

QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16, "intermediate_size": 16}
QWEN_VISION |= {"num_position_embeddings": 16, "patch_size": 4, "initializer_range": 0.2}
DEEPSTACK = QWEN_VISION | {"deepstack_visual_indexes": [0]}
GLM_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16, "intermediate_size": 16}
GLM_VISION |= {"image_size": 16, "patch_size": 4}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 16, "patch_size": 4}
AUDIO = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 16}
AUDIO |= {"num_mel_bins": 16, "downsample_hidden_size": 8, "max_source_positions": 16}
SAM = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
SAM |= {"output_channels": 8, "mlp_dim": 16, "global_attn_indexes": [0], "window_size": 2}
PAIR = {"image_size": (16, 16), "patch_size": (4, 4)}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}

NESTED = {
    "aria": {"text_config": CAUSAL["aria_text"], "vision_config": VISION | {"model_type": "idefics3_vision"}}
    | {"projector_patch_to_query_dict": {16: 4}},
    "deepseek_ocr2": {
        "text_config": ROUTED | {"mlp_layer_types": ["dense", "sparse", "sparse"], "head_dim": 8},
        "vision_config": {
            "sam_config": SAM | {"downsample_channels": [8, 16]},
            "encoder_config": COMMON | {"intermediate_size": 16, "num_hidden_layers": 1},
        },
    },
    "dots3_note": {
        "text_config": CAUSAL["dots3_note_text"],
        "vision_config": VISION
        | {"moe_intermediate_size": 12, "num_local_experts": 4, "adapter_in_dim": 16, "adapter_out_dim": 16}
        | {"mlp_layer_types": ["sparse"]},
        "audio_config": VISION
        | {"num_key_value_heads": 2, "feature_size": 16, "downsample_hidden_size": 8}
        | {"adapter_input_size": 16, "adapter_out_dim": 16},
    },
    "ernie4_5_vl_moe": {
        "text_config": CAUSAL["ernie4_5_moe"]
        | DENSE_SPARSE
        | {"moe_intermediate_size": [12, 10]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
        "vision_config": GLM_VISION,
    },
    "gemma4": {"text_config": CAUSAL["gemma4_text"]},
    "glm4v_moe": {
        "text_config": CAUSAL["glm4_moe"] | MROPE | {"partial_rotary_factor": 1.0},
        "vision_config": GLM_VISION,
    },
    "glm5_next": {
        "text_config": ROUTED
        | LATENT
        | KIMI
        | INDEXED
        | DENSE_SPARSE
        | HYPER
        | {"qk_rope_head_dim": 0, "index_kpool": 2},
        "vision_config": GLM_VISION | {"projection_intermediate_size": 16},
    },
    "internvl": {"text_config": CAUSAL["qwen3_moe"] | {"model_type": "qwen3_moe"}, "vision_config": VISION | PAIR},
    "kimi_k25": {
        "text_config": CAUSAL["deepseek_v3"] | {"model_type": "deepseek_v3"},
        "vision_config": VISION | {"pos_emb_height": 4, "pos_emb_width": 4, "pos_emb_time": 2},
    }
    | {"projection_hidden_size": 16},
    "inkling_mm_model": {
        "text_config": CAUSAL["inkling_text"],
        "vision_config": {"text_hidden_size": 16, "patch_size": 8, "hidden_size": 16, "n_layers": 1}
        | {"num_attention_heads": 2},
        "audio_config": {"text_hidden_size": 16, "n_mel_bins": 8, "mel_vocab_size": 8},
    },
    "inkling2": {
        "text_config": CAUSAL["inkling2_text"],
        "vision_config": VISION | {"projection_hidden_dim": 16, "text_hidden_size": 16, "posemb_grid_size": 4},
    },
    "llama4": {
        "text_config": CAUSAL["llama4_text"],
        "vision_config": VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    },
    "minimax_m3_vl": {"text_config": CAUSAL["minimax_m3_vl_text"], "vision_config": VISION}
    | {"projector_hidden_size": 16, "merged_hidden_size": 16},
    "mistral3": {
        "text_config": ROUTED | LATENT | FIRST_DENSE | {"model_type": "mistral4"},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
    },
    "mistral_large4": {
        "text_config": ROUTED | LATENT | INDEXED | DENSE_SPARSE,
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
    },
    "muse_spark": {
        "text_config": LOCAL
        | HEADS
        | SLIDING
        | SPARSE
        | {"moe_intermediate_size": 12, "moe_hidden_size": 12, "layer_rope_theta": [10000.0] * 3},
        "vision_config": VISION | {"pos_emb_height": 4, "pos_emb_width": 4, "layer_types": ["full_attention"]},
        "audio_config": {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_hidden_size": 16},
    }
    | {"projector_hidden_size": 16, "out_hidden_size": 16},
    "qwen3_5_moe": {"text_config": CAUSAL["qwen3_5_moe_text"] | MROPE, "vision_config": QWEN_VISION},
    "qwen3_omni_moe_thinker": {
        "text_config": EXPERTS | HEADS | MROPE,
        "vision_config": DEEPSTACK,
        "audio_config": AUDIO,
    },
    "qwen3_vl_moe": {"text_config": CAUSAL["qwen3_moe"] | MROPE, "vision_config": DEEPSTACK},
    "qwen4_exp": {"text_config": CAUSAL["qwen4_exp_text"] | MROPE, "vision_config": QWEN_VISION},
    "step3p7": {
        "text_config": TOP
        | HEADS
        | FULL
        | DENSE_SPARSE
        | {"sliding_window": 8}
        | {"n_routed_experts": NUM_EXPERTS, "moe_intermediate_size": 12, "intermediate_size": 24}
        | {"share_expert_dim": 10, "num_nextn_predict_layers": 0},
        "vision_config": VISION,
    },
    "unlimited_ocr": {
        "text_config": ROUTED
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "head_dim": 8, "sliding_window": 8},
        "vision_config": {
            "sam_config": SAM | {"downsample_channels": [8, 16]},
            "encoder_config": VISION,
        },
    },
}
FAMILIES = {family: COMMON | fields for family, fields in CAUSAL.items()}
FAMILIES["mistral4"] = COMMON | ROUTED | LATENT | FIRST_DENSE
FAMILIES |= {family: fields | {"text_config": COMMON | fields["text_config"]} for family, fields in NESTED.items()}
