"""Models that run on this machine: catalogue, cache, worker processes and the service over them.

``service.Inference`` is the way in. Nothing is imported here, so that ``import
uait_server_ext.inference.models`` costs no more than the types it names.
"""
