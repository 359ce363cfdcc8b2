"""The shared modules of the notebooks, in reading order.

Foundations   errors, processes, paths, settings, runtime, weights, speed, logs
Parts         blocks, discriminator, classifier, linear_noise_scheduler, losses, lpips, data
Models        vqvae, unet_cond_base (from blocks), lpips_metric (from lpips), clustering (from classifier),
              samplers (from linear_noise_scheduler)
Files         checkpoints, latents
Measures      features, distribution, fidelity, morphometry
Work          training, sampling, metrics, figures
Reports       memorisation, report, evaluation (of two folders of images)
Command line  __main__

Each line imports only from the lines above it, and importing a module starts nothing: no device, no seed,
no download, no file. Images are float tensors in [0, 1] of shape (B, 3, H, W) unless a docstring says uint8.
"""
