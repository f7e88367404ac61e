"""Private training: images stay with their holder, the owner trains and marks the model's back; leakage is measured.

```python
partition = Partition(model, at="blocks.2", size=(3, 64, 64))
bottleneck = Bottleneck(partition.shape, channels=33, whole=True)
start_with_task_directions(partition, bottleneck, features := partition.front(public_images))
calibrate(bottleneck, features, public_images, target_ssim=0.38)

# process 0, the owner's: a reader of codes first, then the back, which the reader's opinion also teaches
owner_loop(partition, bottleneck, None, optimizer_of_reader, steps=600, reader=reader)
owner_loop(partition, bottleneck, train_denoiser(bottleneck, features), optimizer, steps=600, more_loss=on_public)
# each other process, twice
holder_loop(partition, bottleneck, images, labels, ImageNoise(secret), steps=600)

release(partition, features)  # an ordinary model
```

After SECUREMARK-DL ("privacy partitioning", arXiv 2207.04668), of which only the abstract exists: the design is our
own.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
