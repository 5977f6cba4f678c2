-- Show that a job's training was asked to end. The runner itself goes by the disk.
-- ARGV: id
local state = get('state')
if state == '' then return 'missing' end
if not is_terminal(state) and get('stop_requested') ~= '1' then
  set('stop_requested', '1')
  bump('stop_requested')
end
return state
