"""The shared modules of the notebooks, in reading order.

Foundations   errors, paths, settings, runtime, weights
Parts         blocks, discriminator, classifier, linear_noise_scheduler, losses, lpips, data
Models        vqvae, unet_cond_base (from blocks), lpips_metric (from lpips), clustering (from classifier)
Files         checkpoints, latents
Measures      features, distribution, fidelity, morphometry
Work          training, sampling, metrics, figures
Reports       report, evaluation (of two folders of images)
Gate          memorisation
Command line  __main__

Each line imports only from the lines above it, and importing a module starts nothing: no device, no seed,
no download, no file. Images are float tensors in [0, 1] of shape (B, 3, H, W) unless a docstring says uint8.
"""
