"""Everything about a run that is neither model, data nor optimizer.

A key that is enabled but has no implementation is an error in the engine, never ignored.
"""

train = {
    "output_dir": "./output",
    # A local file, detectron2://..., or "" for random weights.
    "init_checkpoint": "",
    "max_iter": 90000,
    # Passes over the train data, in place of `max_iter`; null: `max_iter` counts.
    "max_epochs": None,
    # Multiply the learning rates by (images per step) / 16.
    "auto_scale_lr": False,
    # "bfloat16" needs no scaling of gradients; "float16" is for GPUs that lack it (before Ampere).
    "amp": {"enabled": False, "dtype": "bfloat16"},
    # Batches per optimizer step, one after another: k times `total_batch_size` images in the memory
    # that one batch takes.
    "grad_accum_steps": 1,
    # A step whose loss or gradient is NaN or infinite is left out; so many in a row end the run.
    "max_bad_steps": 10,
    # An image that cannot be read is replaced by another and listed in corrupt_images.json; if they
    # are more than this share of the training images, the run ends.
    "max_corrupt_share": 0.05,
    # Arguments of DistributedDataParallel, but for fp16_compression: all-reduce in half precision.
    "ddp": {
        "broadcast_buffers": False,
        "find_unused_parameters": False,
        "fp16_compression": False,
    },
    # `params` are `max_norm` and `norm_type` of torch.nn.utils.clip_grad_norm_.
    "clip_grad": {"enabled": False, "params": {"max_norm": 0.1, "norm_type": 2}},
    # Of initial weights, order, augmentation and denoising; -1: one is drawn, logged and saved.
    "seed": -1,
    # Two runs of one seed are the same bits, on one machine and software; slower on a GPU.
    "deterministic": False,
    # 20 iterations, an evaluation of 4 images after every 10: does all of it run?
    "fast_dev_run": {"enabled": False},
    # model_best.pth is the checkpoint with the highest `best_metric`; null keeps none.
    "checkpointer": {"period": 5000, "max_to_keep": 100, "best_metric": "bbox/AP"},
    "eval_period": 5000,
    # report.html and report.json of the last evaluation, beside its results.
    "report": True,
    "log_period": 20,
    # Hooks of your own: each builds a detectron2.engine.HookBase (docs/extend.md).
    "hooks": [],
    # `params` are arguments of wandb.init.
    "wandb": {
        "enabled": False,
        "params": {
            "dir": "./wandb_output",
            "project": "aligndetr",
            "name": "aligndetr_experiment",
        },
    },
    # `params`: tracking_uri ("": $MLFLOW_TRACKING_URI), experiment_name, run_name ("": invented).
    "mlflow": {
        "enabled": False,
        "params": {"tracking_uri": "", "experiment_name": "aligndetr", "run_name": ""},
    },
    "model_ema": {
        "enabled": False,
        "decay": 0.999,
        "device": "",  # "": the model's own
        "use_ema_weights_for_eval_only": False,
    },
    # Implementation of deformable attention: "auto" needs no compiler, "cpp" is the fastest on a
    # CPU and is compiled once per machine; see aligndetr/layers/ms_deform_attn/README.md.
    "ms_deform_attn": "auto",
    "device": "cuda",
}
