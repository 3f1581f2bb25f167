"""Everything about a run that is neither model, data nor optimizer.

A key that is enabled but has no implementation is an error in the engine, never ignored.
"""

train = {
    # Folder of logs, checkpoints and config.yaml; without --resume it may hold no
    # checkpoints yet, but for those of a fast_dev_run.
    "output_dir": "./output",
    # A file of any kind in docs/checkpoints.md, detectron2://..., https://..., hf://user/model, or
    # "" for random weights.
    "init_checkpoint": "",
    # Optimizer steps. Changed alone, the learning rate's schedule stretches or shrinks with it.
    # null: from the number of training images (docs/own_data.md).
    "max_iter": 90000,
    # Passes over the train data, in place of `max_iter`; null: `max_iter` counts.
    "max_epochs": None,
    # Multiply the learning rates by (images per step) / 16.
    "auto_scale_lr": False,
    "amp": {
        "enabled": False,  # half precision, by autocast
        # "bfloat16" needs no scaling of gradients; "float16" is for GPUs that lack it (before
        # Ampere).
        "dtype": "bfloat16",
    },
    # Batches per optimizer step, one after another: k times `total_batch_size` images in the memory
    # that one batch takes.
    "grad_accum_steps": 1,
    # A step whose loss or gradient is NaN or infinite is left out; so many in a row end the run.
    "max_bad_steps": 10,
    # An image that cannot be read is replaced by another and listed in corrupt_images.json; if they
    # are more than this share of the training images, the run ends.
    "max_corrupt_share": 0.05,
    # Arguments of torch's DistributedDataParallel, others too, and `fp16_compression`.
    "ddp": {
        # No buffer of these models changes, but for those of a BatchNorm that is not frozen.
        "broadcast_buffers": False,
        "find_unused_parameters": False,  # every parameter takes part in every step
        "fp16_compression": False,  # all-reduce in half precision: half the traffic
    },
    "clip_grad": {
        "enabled": False,  # scale gradients down where their norm is above `max_norm`
        "params": {
            "max_norm": 0.1,  # of all gradients together
            "norm_type": 2,  # p of the norm; `inf` is the largest entry
        },
    },
    # Of initial weights, order, augmentation and denoising; -1: one is drawn, logged and saved.
    "seed": -1,
    # Two runs of one seed are the same bits, on one machine and software; slower on a GPU.
    "deterministic": False,
    "fast_dev_run": {
        # 20 iterations, an evaluation of 4 images after every 10: does all of it run?
        "enabled": False,
    },
    "checkpointer": {
        # Iterations between two checkpoints; 0: one at the end; null: from the length.
        "period": 5000,
        # Older model_ITERATION.pth are deleted; null: none.
        "max_to_keep": 100,
        # model_best.pth is the checkpoint with the highest value of this; null keeps none.
        "best_metric": "bbox/AP",
    },
    # Iterations between two evaluations; 0: one at the end; null: from the length.
    "eval_period": 5000,
    # Write report.html and report.json of the last evaluation, beside its results.
    "report": True,
    "log_period": 20,  # iterations between two lines of the log
    # Hooks of your own: each builds a detectron2.engine.HookBase (docs/extend.md).
    "hooks": [],
    "wandb": {
        "enabled": False,  # log to Weights & Biases
        # Arguments of wandb.init; others may be added.
        "params": {
            "dir": "./wandb_output",  # where it keeps its files
            "project": "aligndetr",  # the project that the run belongs to
            "name": "aligndetr_experiment",  # the run's name
        },
    },
    "mlflow": {
        "enabled": False,  # log to MLflow
        "params": {
            "tracking_uri": "",  # "": `$MLFLOW_TRACKING_URI`, or MLflow's own choice
            "experiment_name": "aligndetr",  # the experiment that the run belongs to
            "run_name": "",  # the run's name; "": MLflow invents one
        },
    },
    "model_ema": {
        "enabled": False,  # also keep a moving average of the weights
        "decay": 0.999,  # share of the old average that stays at each step
        "device": "",  # where it is kept; "": beside the model
        "use_ema_weights_for_eval_only": False,  # evaluate the average alone, not both
    },
    # Implementation of deformable attention: "auto" is right everywhere, "cpp" is the fastest on a
    # CPU and is compiled once per machine; see aligndetr/layers/ms_deform_attn/README.md.
    "ms_deform_attn": "auto",
    "device": "cuda",  # torch's name; "cpu" works everywhere
}
