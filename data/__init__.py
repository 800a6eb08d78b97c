"""Files to tensors.

What a sample is       schema
Photographs to it      images, pose_formats, parts, polygons, json_files;  pose, agnostic, framing, preprocess
Raw photographs        estimators/
Layouts                prepare, importers/, preparing, chunk, workers, split, prepare_report
Shards                 shards, shard_index
Shards to batches      sources, decode, dataset, order, mixture, augment, loader;  pipes (streams without an index)
Looking and checking   inspect, pose_drawing, verify
Drawn people           synthetic, synthetic_people, synthetic_garments
Randomness             randomness
"""
