"""Training dictionaries: what happens between reading a batch and Adam's step, in order.

1. `sweep.train_sweep` opens the cached activations and makes one `Trainer` per run; `sweep.train` reads each batch
   once, gives it to all trainers, and writes history rows and checkpoints.
2. `Trainer.step` divides x and y by their scales (`parameters.Scales`) and calls `objective.compute_loss`.
3. Activation: `selection.select` (CPU) or `kernels.fixed_k.select_fixed_k` (GPU, topk) computes the encoder product and
   finds the entries that can be active. Otherwise `objective.activate_dense` computes all features.
4. `compute_loss` decodes (`sparse.Decode`), then adds reconstruction loss, sparsity penalty and AuxK.
5. `Trainer.step` calls backward, sums gradients over processes (`collectives`), and takes Adam's step, unless the loss
   has diverged.
6. At the end `parameters.to_dictionary` folds the scales into a `Dictionary` on raw activations.

To add an activation function, name it in `config.dictionaries.Training.act` and edit:

- `objective`: `_activation` (elementwise) or `activate_dense` (top-k kinds), and `_sparsity_penalty`
- `selection.select`: entries that can be active; by default those with a positive pre-activation
- `parameters.to_dictionary` and `Dictionary.encode`, `encode_sparse`: its form after training
- `tests/dictionaries/test_gradients.py`: a case that compares the sparse with the dense gradients

`launch` starts several processes for one sweep. `paper_loss` holds the coordinates of `loss: paper`.
"""
