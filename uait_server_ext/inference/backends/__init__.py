"""The engines that run models, one module each; imported only inside a worker process."""
