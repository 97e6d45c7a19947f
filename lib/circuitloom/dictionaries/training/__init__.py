"""Trains dictionaries. The steps from a batch to a saved dictionary are:

1. `sweep.train_sweep` opens the cached activations and creates one `Trainer` per run. `sweep.train` reads each batch
   once for all trainers. It also writes history rows and checkpoints. With tensor parallelism,
   `Collectives.gather_batch` first collects the rows of all processes.
2. `Trainer.step` divides x and y by their scales (`parameters.Scales`) and calls `objective.compute_loss`. With `loss:
   paper`, x and y are converted to the coordinates of `paper_loss` instead.
3. `selection.select` (CPU) or `kernels.fixed_k.select_fixed_k` (GPU, topk) computes the encoder product and finds the
   entries that can be active. In other cases, `objective.activate_dense` computes all features.
4. `compute_loss` decodes (`sparse.Decode`), then adds reconstruction loss, sparsity penalty and AuxK or the
   pre-activation loss.
5. `Trainer.step` calls backward and sums gradients over processes (`collectives`). Adam takes a step unless the loss
   has diverged. For topk on a GPU, one CUDA graph (`trainer._CapturedStep`) replays point 3 to backward. The graph is
   not used with tensor parallelism, or if there are dead features for AuxK.
6. At the end, `parameters.to_dictionary` folds the scales into a `Dictionary` on raw activations.

To add an activation function, add its name to `config.dictionaries.Training.act` and edit:

- `objective`: `_activation` (elementwise) or `activate_dense` (top-k kinds), and `sparsity_penalty`
- `selection.select`: the entries that can be active (by default, entries with a positive pre-activation)
- for the form of the function after training: `parameters.to_dictionary` (which maps an unknown act to "threshold"),
  `encode`, `encode_sparse` and `__post_init__` of `Dictionary`, `formats/saelens.py` and `formats/circuit_tracer.py`
- if the function has a parameter of its own: `Parameters`, `PER_FEATURE`, `initial_parameters`, `with_unit_rows` and
  `Trainer._apply_constraints`
- if the function is a top-k kind: `objective.TOPK_ACTS`, and the tuples ("topk", "batchtopk") in
  `config/dictionaries.py`, `evaluation/summary.py` and `plan/sizes.py`
- if the function has GPU kernels: `kernels.fixed_k.uses_kernels`, and `has_kernels` in `plan/training.py`
- `MARKERS` in `evaluation/pareto.py`, and the table of activation functions in `docs/method.md`
- tests in `tests/dictionaries/`: `test_gradients.py` (a case that compares sparse with dense gradients),
  `test_search.py`, `test_training.py`, `training_cases.py` and `test_formats.py`

Cross-layer transcoders take the same steps for all layers at once: `sweep.train_cross_layer_sweep`,
`cross_layer_trainer.CrossLayerTrainer`, `cross_layer_objective` (the loss, from the functions of `objective`) and
`cross_layer_parameters` (initialisation and conversion). On a CPU, a decoder's gradient and Adam's step are computed
for some features at a time (`CrossLayerTrainer._step_decoder`).

`launch` starts several processes for one sweep. `paper_loss` defines the coordinates of `loss: paper`.
"""
