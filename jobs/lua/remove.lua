-- Forget a job that has ended.
-- ARGV: id
local state = get('state')
if state == '' then return 'missing' end
if not is_terminal(state) then return 'live' end
redis.call('DEL', job, events)
redis.call('ZREM', index, ARGV[1])
redis.call('PUBLISH', 'modelpress:changed', job)
return 'removed'
