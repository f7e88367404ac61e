"""Private training (split learning): images stay with their holders, and the owner trains and marks the server part.

```python
partition = Partition(model, at="blocks.2", size=(3, 64, 64))
bottleneck = Bottleneck(partition.shape, channels=33, flatten_features=True)
init_task_directions(partition, bottleneck, features := partition.client_part(public_images))
calibrate_noise(bottleneck, features, public_images, target_ssim=0.38)

# process 0, the owner: first a student of the codes, then the server part, which also learns its pseudo-labels
owner_loop(partition, bottleneck, None, student_optimizer, steps=600, student=student)
owner_loop(partition, bottleneck, train_denoiser(bottleneck, features), optimizer, steps=600, extra_loss=on_public)
# every other process, twice
data_holder_loop(partition, bottleneck, images, labels, ImageNoise(secret), steps=600)

release(partition, features)  # an ordinary model
```

After SECUREMARK-DL ("privacy partitioning", arXiv 2207.04668). Only its abstract is public, so the design is our own.
"""

from hf_fingerprint.extras import attach as _attach


__getattr__, __dir__ = _attach(__name__, __file__, {"": ("torch",)})
