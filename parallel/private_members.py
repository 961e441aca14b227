"""What is used of DeepSpeed and torch that they do not promise to keep.

tests/parallel/test_private_members.py names each entry that another version has moved; beside
each stands the test that would see the results change if it only meant something else.
"""

from __future__ import annotations

DEEPSPEED: dict[str, tuple[str, ...]] = {
    # zero_state.py reads and fills what a rank holds: tests/layouts/test_checkpoints.py
    "deepspeed.runtime.zero.stage_1_and_2": (
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "single_partition_of_fp32_groups",
        "_global_grad_norm",
        "update_lp_params",
        # flat_gradients.py, too: tests/layouts/test_parity.py, test_bytes.py
        "GradPartitionBufferGroup",
        "all_gather_dp_groups",  # gloo.py
        "averaged_gradients",
        "bit16_groups",
        "bit16_groups_flat",
        "clip_grad",
        "dp_process_group",
        "get_grad_norm_direct",
        "_link_all_hp_params",
        "parallel_partitioned_bit16_groups",
        "partition_size",
        "real_dp_process_group",
        "reduce_gradients",
        "unscale_and_clip_grads",
    ),
    "deepspeed.runtime.zero.stage3": (
        "_get_fp32_opt_state_partition",
        "_global_grad_norm",
        "fp16_partitioned_groups_flat",
        "fp32_partitioned_groups_flat",
        "persistent_parameters",
    ),
    "deepspeed.runtime.zero.partition_parameters": ("ds_numel", "ds_tensor"),
    "deepspeed.runtime.bf16_optimizer": (
        "all_gather_dp_groups",  # gloo.py
        "_hp_optimizer_states_linked",
        "_lazy_init_hp_params_optimizer_state",
        "fp32_groups_flat_partition",
        "_global_grad_norm",
        "update_lp_params",
    ),
    "deepspeed.utils.tensor_fragment": ("lp_fragment_address", "get_hp_fragment"),
    "deepspeed.utils.mixed_precision_linkage": ("_hp_mapping",),
    # deepspeed_adapter.py marks parameters of the tensor axis: tests/layouts/test_parity.py
    "deepspeed.runtime.utils": ("model_parallel", "tensor_model_parallel"),
    "deepspeed.utils.groups": ("get_model_parallel_world_size", "get_data_parallel_group"),
    # and experts, their groups and their parameter group: tests/layouts/test_parity.py
    "deepspeed.moe.utils": ("allreduce", "group_name", "moe"),
    "deepspeed.runtime.engine": (
        "ep_size_",
        "set_deepspeed_parallelism",
        "num_local_experts",
        "is_deepcompile_supported",  # costs time only
    ),
    "deepspeed.moe.layer": (
        "ep_size",
        "num_experts",
        "num_local_experts",
        "expert_group_name",
        "enable_expert_tensor_parallelism",
        "use_residual",
        "deepspeed_moe",
        "_set_ep_group",
    ),
    # pipeline_parallel.py ties weights between stages: tests/layouts/test_parity.py, TIED
    "deepspeed.runtime.pipe.module": (
        "tied_comms",
        "tied_modules",
        "ds_pipe_replicated",
        "ranks",
        "group",
        "module",
        "weight_attr",
    ),
    # engine.py: tests/trainer/forecast/test_evaluate.py, tests/launch/test_demo.py
    "deepspeed.runtime.pipe.engine": ("total_loss",),
    # and what it leaves out of the import, which costs time only
    "deepspeed.ops": ("__compatible_ops__",),
    "deepspeed.runtime.compiler": ("compile", "dummy_decorator"),
    "deepspeed.runtime.zero.muon.original_muon": ("compiler",),
}
"""Module of DeepSpeed -> names that are used of it, of its objects, or as its marks."""

TORCH: dict[str, tuple[str, ...]] = {
    # tensor_files.py reads a checkpoint's metadata: tests/trainer/checkpoint/test_tensor_files.py
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": ("_MEM_FORMAT_ENCODING",),
    "torch.serialization": ("_get_layout",),
    # partitions.py is asked for its chunks: tests/trainer/checkpoint/test_partitions.py
    "torch.distributed.checkpoint.planner_helpers": (
        "__create_write_items__",
        "__create_chunk_list__",
    ),
    "torch.distributed.checkpoint.utils": ("__get_tensor_shard__",),
    "torch.Tensor": ("_make_wrapper_subclass",),
    # fused_attention.py marks constants for compilers: tests/gpu/test_gpu.py
    "torch._dynamo.decorators": ("_dynamo_marked_constant",),
    # model/recompute.py: tests/model/test_recompute.py
    "torch.utils.checkpoint": ("_VersionWrapper", "_detach_helper"),
    "torch.utils._python_dispatch": ("TorchDispatchMode",),
    # model/tracing.py: tests/model/test_tracing.py
    "torch._C": ("_are_functorch_transforms_active",),
    # kernels without a public name: tests/model/test_attention_kernels.py, test_norm.py,
    # test_feedforward.py, tests/gpu/test_gpu.py
    "torch.ops.aten": (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "native_layer_norm_backward",
        "silu_backward",
    ),
    # flight_recorder.py, and stacks.py, which reads arguments of collectives off their frames:
    # tests/faults/test_watchdog.py
    "torch._C._distributed_c10d": ("_dump_fr_trace_json",),
    "torch.distributed.distributed_c10d": (
        "_world",
        "pg_names",
        "PrefixStore",
        "Store",
        "group",
        "dst",
        "src",
        "tensor",
        "output",
        "input",
        "output_tensor",
    ),
}
"""Module of torch -> names that are used of it, or of its functions' arguments."""
