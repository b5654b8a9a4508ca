"""RegionBLIP computed as the published code computes it: the other side of the benchmarks.

A plain statement over the weights of our model, in functions of tensors and names of parameters; no module of ours takes part,
so that what is made faster there stays slow here. The values are the same up to rounding. Facts of the published code
(mightyzau/RegionBLIP over LAVIS and transformers 4.31, Point-BERT) that it follows:

    vit.py     attention as softmax(q k^T) v; every row has its own pass
    points.py  farthest points by a loop in Python; all distances and topk; mini-PointNet as convolutions over groups, the group's
               vector copied to all its points
    bert.py    additive masks; keys and values of the encoder tokens for every row, in ITM for three times the rows
    opt.py     logits at all positions; explicit attention through bmm; a cache that grows by torch.cat
    beam.py    the prompt repeated for every beam before it is read; the cache picked anew at every step
    model.py   the four losses, captions, and a training step with an AdamW that loops over parameters
"""
